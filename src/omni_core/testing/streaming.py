"""Following a request, and ending it early."""

from __future__ import annotations

import itertools

import pytest

from omni_core import RequestHandle
from omni_core.errors import RequestAbortedError, RequestTimeoutError
from omni_core.testing.base import LONG, ConformanceBase
from omni_core.testing.bounds import wait_until


class Streaming(ConformanceBase):
    """Abort and progress at every denoising step."""

    theme = "progress"

    @pytest.fixture(autouse=True)
    def _only_diffusion_workers(self, request: pytest.FixtureRequest) -> None:
        if request.node.name.partition("[")[0] in vars(Streaming):
            self.need_diffusion_worker()

    def test_events_are_in_order(self) -> None:
        """Queued, started, steps upwards to the last, finished: each once, and finished with the output."""
        handle = self.shared_engine().submit(self.request(num_inference_steps=12))
        events = list(handle.events(timeout=self.patience_s))
        kinds = [kind for kind, _ in itertools.groupby(event.kind for event in events)]
        assert kinds == ["queued", "started", "step", "finished"]
        assert {event.request_id for event in events} == {handle.request_id}
        assert events[-1].output is self.result(handle)

    def test_steps_are_counted(self) -> None:
        """Steps grow, never past their number, and the last one is reported."""
        handles = [self.shared_engine().submit(self.request(num_inference_steps=steps)) for steps in (1, 5, 40)]
        for handle, steps in zip(handles, (1, 5, 40), strict=True):
            seen = [event for event in handle.events(timeout=self.patience_s) if event.kind == "step"]
            assert {event.num_steps for event in seen} == {steps}
            numbers = [event.step for event in seen]
            assert numbers == sorted(set(numbers))
            assert numbers[-1] == steps
            assert self.result(handle).metrics.num_steps == steps

    def test_progress_comes_while_it_runs(self) -> None:
        """Steps are reported before the request has ended, not in one heap at its end."""
        handle = self.start(self.shared_engine())
        seen = 0
        for event in handle.events(timeout=self.patience_s):
            seen += event.kind == "step"
            if seen == 3:
                break
        assert not handle.done()

    def test_events_can_be_read_again(self) -> None:
        """Each reader gets all events from the first."""
        handle = self.shared_engine().submit(self.request())
        first = [event.kind for event in handle.events(timeout=self.patience_s)]
        assert [event.kind for event in handle.events(timeout=1.0)] == first
        assert [event.kind for event in handle.past_events()] == first

    def test_abort_in_the_middle(self) -> None:
        """A running request ends long before its last step."""
        handle = self.start(self.shared_engine())
        handle.abort()
        output = handle.result(self.patience_s)
        assert output.finish_reason == "aborted"
        assert output.output == {}
        assert 0 < output.metrics.num_steps < LONG
        with pytest.raises(RequestAbortedError, match=handle.request_id):
            output.raise_for_error()
        self.assert_serves(self.shared_engine())

    def test_abort_before_the_start(self) -> None:
        """A waiting request is aborted without ever starting."""
        engine = self.narrow_engine()
        blocker = self.start(engine)
        handle = engine.submit(self.request())
        handle.abort()
        assert handle.result(self.patience_s).finish_reason == "aborted"
        assert [event.kind for event in handle.events()] == ["queued", "finished"]
        assert not blocker.done()

    def test_abort_twice_and_too_late(self) -> None:
        """The second abort, and one after the end, do nothing."""
        engine = self.shared_engine()
        handle = self.start(engine)
        handle.abort()
        handle.abort()
        engine.abort(handle.request_id)
        assert handle.result(self.patience_s).finish_reason == "aborted"
        handle.abort()
        done = engine.submit(self.request())
        output = self.result(done)
        done.abort()
        assert self.result(done) is output
        assert output.finish_reason == "finished"

    def test_abort_of_an_unknown_id(self) -> None:
        """Nothing happens."""
        self.shared_engine().abort("nobody")
        self.assert_serves(self.shared_engine())

    def test_abort_of_one_leaves_the_others(self) -> None:
        """Of five requests that run together, one is aborted and four give their picture."""
        engine = self.shared_engine()
        victim = self.start(engine)
        requests = [self.request(seed=seed, num_inference_steps=30) for seed in range(4)]
        handles = engine.submit_all(requests)
        next(event for event in handles[0].events(timeout=self.patience_s) if event.kind == "step")
        victim.abort()
        for request, handle in zip(requests, handles, strict=True):
            self.assert_right(self.result(handle), request)
        assert victim.result(self.patience_s).finish_reason == "aborted"

    @pytest.mark.parametrize("reason", ["aborted", "finished"])
    def test_an_end_is_told_at_once(self, reason: str) -> None:
        """An end is reported before the request beside it has made two more steps, however calls are bunched."""
        engine = self.shared_engine(data_parallel_size=1)
        beside = self.start(engine)
        steps = 40 if reason == "finished" else LONG
        # Latents: a picture would be decoded while the other request goes on.
        handle = engine.submit(self.request(num_inference_steps=steps, output_type="latent"))
        # Each step of both is an event, so this tells by how many steps the other one is ahead.
        ahead: list[int] = []
        handle.subscribe(lambda event: ahead.append(last_step(beside) - event.step))
        wait_until(lambda: last_step(handle) >= 10, "the request has made ten steps")
        if reason == "aborted":
            handle.abort()
        output = handle.result(self.patience_s)
        assert output.finish_reason == reason
        at_end = ahead[-1] - (output.metrics.num_steps - last_step(handle))
        while_running = ahead[-2]
        assert at_end - while_running <= 2, f"the request beside it made {at_end - while_running} steps meanwhile"
        assert not beside.done()

    def test_timeout_while_running(self) -> None:
        """A request that takes longer than its `timeout_s` ends with `timeout`."""
        output = self.result(self.start(self.shared_engine(), timeout_s=1.0))
        assert output.finish_reason == "timeout"
        with pytest.raises(RequestTimeoutError, match="timeout_s"):
            output.raise_for_error()
        self.assert_serves(self.shared_engine())

    def test_timeout_while_waiting(self) -> None:
        """A request whose time is up before it starts ends with `timeout`, and the one that runs goes on."""
        engine = self.narrow_engine()
        blocker = self.start(engine)
        output = engine.submit(self.request(timeout_s=0.05)).result(self.patience_s)
        assert output.finish_reason == "timeout"
        assert not blocker.done()

    def test_waiting_for_a_result_has_a_bound(self) -> None:
        """`result(timeout)` raises TimeoutError, and the request goes on."""
        handle = self.start(self.shared_engine())
        with pytest.raises(TimeoutError):
            handle.result(timeout=0.05)
        assert not handle.done()

    def test_a_step_that_is_given_up_is_aborted(self) -> None:
        """`engine.step(requests, timeout)` aborts what nobody waits for any more."""
        engine = self.shared_engine()
        aborted = engine.stats().ended.get("aborted", 0)
        with pytest.raises(TimeoutError):
            engine.step([self.request(num_inference_steps=LONG)], timeout=0.2)
        wait_until(lambda: engine.stats().ended.get("aborted", 0) == aborted + 1, "the request is aborted")
        assert engine.stats().running == 0

    def test_previews(self) -> None:
        """A small picture comes with every second step, and the result is the same as without."""
        request = self.request(num_inference_steps=7, preview_every=2)
        handle = self.shared_engine().submit(request)
        shown = [event for event in handle.events(timeout=self.patience_s) if event.preview is not None]
        assert [event.step for event in shown] == [2, 4, 6]
        assert all(max(event.preview.size) <= 64 for event in shown)
        self.assert_right(self.result(handle), request)


def last_step(handle: RequestHandle) -> int:
    """Return the last step of a request that was reported."""
    return max((event.step for event in handle.past_events()), default=0)
