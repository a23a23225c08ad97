"""Sleeping and waking up."""

from __future__ import annotations

import pytest

from omni_core.errors import EngineClosedError
from omni_core.testing import calls
from omni_core.testing.base import ConformanceBase


class Sleeping(ConformanceBase):
    """Sleeping and waking up."""

    theme = "sleep"

    @pytest.fixture(autouse=True)
    def _only_sleepers(self, request: pytest.FixtureRequest) -> None:
        if request.node.name.partition("[")[0] in vars(Sleeping):
            self.need_sleep()

    @pytest.mark.parametrize("level", [1, 2])
    def test_requests_wait_while_it_sleeps(self, level: int) -> None:
        """A request that arrives meanwhile is served after waking up, with the same picture."""
        engine = self.shared_engine()
        engine.sleep(level=level)
        assert engine.sleep_level > 0
        handle = engine.submit(self.request())
        with pytest.raises(TimeoutError):
            handle.result(timeout=0.2)
        assert [event.kind for event in handle.past_events()] == ["queued"]
        engine.wake_up()
        self.assert_right(self.result(handle), handle.request)

    @pytest.mark.parametrize("level", [1, 2])
    def test_running_requests_survive(self, level: int) -> None:
        """A request that runs when the engine falls asleep finishes after waking up, with the same picture."""
        engine = self.shared_engine()
        request = self.request(num_inference_steps=200)
        handle = engine.submit(request)
        next(event for event in handle.events(timeout=self.patience_s) if event.kind == "started")
        engine.sleep(level=level)
        engine.wake_up()
        self.assert_right(self.result(handle), request)

    def test_sleeping_and_waking_twice(self) -> None:
        """The second time changes nothing; level 1 after level 2 neither."""
        engine = self.shared_engine()
        engine.wake_up()
        engine.sleep(level=1)
        engine.sleep(level=1)
        engine.sleep(level=2)
        engine.sleep(level=1)
        assert engine.sleep_level > 0
        engine.wake_up()
        engine.wake_up()
        self.assert_serves(engine)

    def test_a_level_that_does_not_exist(self) -> None:
        """It is refused, and the engine stays awake."""
        engine = self.shared_engine()
        with pytest.raises(ValueError, match="3"):
            engine.sleep(level=3)
        assert engine.sleep_level == 0
        self.assert_serves(engine)

    def test_healthy_while_asleep(self) -> None:
        """Sleeping is not being ill."""
        engine = self.shared_engine()
        for level in (1, 2):
            engine.sleep(level=level)
            engine.check_health()
        engine.wake_up()

    def test_sleeping_by_a_call(self) -> None:
        """`collective_rpc("sleep")` is the same as `sleep()`: requests wait."""
        engine = self.shared_engine()
        engine.collective_rpc("sleep", kwargs={"level": 1})
        assert engine.sleep_level > 0
        engine.collective_rpc("wake_up")
        self.assert_serves(engine)

    def test_abort_while_asleep(self) -> None:
        """A request that waits is ended without waking up."""
        engine = self.shared_engine()
        engine.sleep()
        handle = engine.submit(self.request())
        handle.abort()
        assert handle.result(self.patience_s).finish_reason == "aborted"
        engine.wake_up()

    def test_level_2_drops_the_weights(self) -> None:
        """After `sleep(level=2)` no worker holds the weights any more."""
        self.need_diffusion_worker()
        engine = self.shared_engine()
        engine.collective_rpc(calls.watch_weights, self.patience_s)
        assert all(engine.collective_rpc(calls.are_weights_there, self.patience_s))
        engine.sleep(level=2)
        assert not any(engine.collective_rpc(calls.are_weights_there, self.patience_s))
        engine.wake_up()
        self.assert_serves(engine)

    def test_closing_while_asleep(self) -> None:
        """Closing does not wait for waking up, and what waits is told."""
        engine = self.engine()
        engine.sleep()
        handle = engine.submit(self.request())
        self.close(engine)
        with pytest.raises(EngineClosedError):
            handle.result(5.0).raise_for_error()
