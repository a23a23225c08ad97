"""Worker processes that end, hang or are stopped while the engine is used."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_core import DiffusionEngine
from omni_core.errors import OmniError, WorkerDiedError
from omni_core.outputs import FinishReason
from omni_core.testing import calls
from omni_core.testing.base import LONG, ConformanceBase
from omni_core.testing.bounds import in_threads, is_healthy, wait_until
from omni_core.testing.footprint import HAS_PROC, identity, is_alive, is_stopped
from omni_core.testing.injection import fault

# Seconds within which a caller must hear of a death.
_TOLD_S = 5.0


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Hold processes up with SIGSTOP, and let those that are still there go on afterwards."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        if HAS_PROC:  # the signal was sent, but on a busy machine a thread may still get to do something
            wait_until(lambda: all(map(is_stopped, pids)), "the workers are held up")
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class Faults(ConformanceBase):
    """Crash and hang of workers."""

    theme = "crashes"

    @pytest.fixture(autouse=True)
    def _only_with_processes(self, request: pytest.FixtureRequest) -> None:
        if request.node.name.partition("[")[0] in vars(Faults):
            self.need_processes(self.shared_engine())

    def _pids(self, engine: DiffusionEngine) -> list[int]:
        return [pid for pids in self.worker_pids(engine) for pid in pids]

    def _replace(self, engine: DiffusionEngine) -> float:
        """Kill all workers, and return after how many seconds there were others."""
        before = [identity(pid) for pid in self._pids(engine)]
        for pid, _ in before:
            os.kill(pid, signal.SIGKILL)

        def are_others() -> bool:
            now = [identity(pid) for pid in self._pids(engine)]
            # The executor may still name one that is gone, of which nothing is known any more.
            return len(now) == len(before) and all(map(is_alive, now)) and not {*now} & {*before}

        return wait_until(are_others, "as many new workers as there were", self.patience_s)

    @pytest.mark.parametrize("which", ["SIGKILL", "SIGTERM", "SIGINT", "SIGSEGV"])
    def test_a_signal_to_an_idle_worker(self, which: str) -> None:
        """The next request gets its picture, from the worker or from its successor."""
        engine = self.shared_engine()
        for pid in self._pids(engine):
            os.kill(pid, signal.Signals[which])
        begun = time.monotonic()
        self.assert_serves(engine)
        self.note_seconds(f"{which}: served again", time.monotonic() - begun)
        engine.check_health()

    @pytest.mark.parametrize("which", ["SIGKILL", "SIGTERM", "SIGINT", "SIGSEGV"])
    def test_a_signal_to_a_worker_in_a_request(self, which: str) -> None:
        """The requests that run there finish with the same pictures as without."""
        engine = self.shared_engine()
        requests = [self.request(seed=seed, num_inference_steps=150) for seed in range(3)]
        handles = engine.submit_all(requests)
        next(event for event in handles[0].events(timeout=self.patience_s) if event.kind == "started")
        begun = time.monotonic()
        for pid in self._pids(engine):
            os.kill(pid, signal.Signals[which])
        for request, handle in zip(requests, handles, strict=True):
            self.assert_right(self.result(handle), request)
        self.note_seconds(f"{which}: all finished", time.monotonic() - begun)

    def test_a_killed_worker_is_replaced(self) -> None:
        """Another process takes its place, without a request to ask for it."""
        engine = self.shared_engine()
        self.note_seconds("replaced", self._replace(engine))
        self.assert_serves(engine)

    def test_a_retry_is_told(self) -> None:
        """A caller that follows the request hears that it begins again, and its metrics count it."""
        self.need_diffusion_worker()
        engine = self.shared_engine()
        handle = engine.submit(self.request(num_inference_steps=150))
        next(event for event in handle.events(timeout=self.patience_s) if event.kind == "step")
        os.kill(self._pids(engine)[0], signal.SIGKILL)
        output = self.result(handle)
        self.assert_right(output, handle.request)
        assert output.metrics.num_retries >= 1
        assert "retrying" in [event.kind for event in handle.past_events()]

    @pytest.mark.parametrize("kind", ["exit", "kill"])
    def test_one_poison_request(self, kind: str) -> None:
        """A request that ends every worker fails with WorkerDiedError; the others get their pictures."""
        engine = self.shared_engine(max_retries=1)
        good = [self.request(seed=seed, num_inference_steps=8) for seed in range(5)]
        poison = self.request(fault=fault(kind), request_id="poison")  # type: ignore[arg-type]
        outputs = self.step(engine, *good[:2], poison, *good[2:])
        for request, output in zip(good, outputs[:2] + outputs[3:], strict=True):
            self.assert_right(output, request)
        with pytest.raises(WorkerDiedError, match="poison") as caught:
            outputs[2].raise_for_error()
        assert ("17" if kind == "exit" else "SIGKILL") in str(caught.value)
        self.assert_serves(engine)

    def test_a_request_that_ends_its_worker_once(self, tmp_path: Path) -> None:
        """It is run again from its seed, and gives the right picture."""
        engine = self.shared_engine()
        request = self.request(fault=fault("exit", step=3, once=tmp_path / "once"))
        [output] = self.step(engine, request)
        self.assert_right(output, request)
        assert (tmp_path / "once").exists()

    def test_no_retries_wanted(self) -> None:
        """With `max_retries=0` a request whose worker dies fails at once, and is not run again."""
        engine = self.engine(max_retries=0)
        handle = self.start(engine)
        os.kill(self._pids(engine)[0], signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(WorkerDiedError, match=handle.request_id):
            self.result(handle).raise_for_error()
        self.note_seconds("caller knew", time.monotonic() - begun)
        assert time.monotonic() - begun < _TOLD_S

    def test_a_call_under_way_when_its_worker_dies(self, tmp_path: Path) -> None:
        """The caller is told within seconds, though it gave no timeout."""
        engine = self.shared_engine()
        begun_file = tmp_path / "begun"
        told: list[float] = []

        def call() -> None:
            with pytest.raises(OmniError):
                engine.collective_rpc(_touch_and_wait, None, (str(begun_file), str(tmp_path / "never")))
            told.append(time.monotonic())

        def kill() -> float:
            wait_until(begun_file.exists, "the call has begun")
            for pid in self._pids(engine):
                os.kill(pid, signal.SIGKILL)
            return time.monotonic()

        _, killed = in_threads([call, kill])
        assert killed is not None
        self.note_seconds("caller knew", told[0] - killed)
        assert told[0] - killed < _TOLD_S
        self.assert_serves(engine)

    @pytest.mark.parametrize("ends", ["finished", "aborted"])
    def test_a_worker_that_dies_asleep(self, ends: FinishReason) -> None:
        """No step is under way, so that none can fail: the next one must, and what the worker had runs again."""
        engine = self.shared_engine()
        request = self.request(num_inference_steps=100)
        handle = engine.submit(request)
        next(event for event in handle.events(timeout=self.patience_s) if event.kind == "step")
        engine.sleep()
        try:
            self._replace(engine)
            if ends == "aborted":
                handle.abort()
        finally:
            engine.wake_up()
        output = self.result(handle)
        assert output.finish_reason == ends
        if ends == "finished":
            self.assert_right(output, request)
        self.assert_serves(engine)

    def test_kills_while_many_requests_run(self) -> None:
        """With a worker killed three times meanwhile, thirty requests give the same pictures as without."""
        engine = self.shared_engine()
        requests = [self.request(seed=seed % 5, num_inference_steps=60) for seed in range(30)]
        handles = engine.submit_all(requests)
        for number in (0, 10, 20):
            handles[number].result(self.patience_s)
            for pid in self._pids(engine)[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for request, handle in zip(requests, handles, strict=True):
            self.assert_right(self.result(handle), request)

    def test_the_other_replica_goes_on(self) -> None:
        """With two replicas, the death of one does not make the other unhealthy, and no request is lost."""
        self.need_option("data_parallel_size")
        engine = self.engine(data_parallel_size=2)
        requests = [self.request(seed=seed, num_inference_steps=100) for seed in range(6)]
        handles = engine.submit_all(requests)
        next(event for event in handles[0].events(timeout=self.patience_s) if event.kind == "started")
        os.kill(self.worker_pids(engine)[1][0], signal.SIGKILL)
        engine.check_health()
        for request, handle in zip(requests, handles, strict=True):
            self.assert_right(self.result(handle), request)

    def test_a_stopped_worker_is_taken_for_dead(self) -> None:
        """A worker that is held up by SIGSTOP for `step_timeout_s` is replaced, and its request finishes."""
        self.need_option("step_timeout_s")
        engine = self.shared_engine(step_timeout_s=2.0)
        request = self.request(num_inference_steps=200)
        handle = engine.submit(request)
        next(event for event in handle.events(timeout=self.patience_s) if event.kind == "started")
        processes = [identity(pid) for pid in self._pids(engine)]
        begun = time.monotonic()
        with stopped([pid for pid, _ in processes]):
            self.assert_right(self.result(handle), request)
            self.note_seconds("finished elsewhere", time.monotonic() - begun)
            wait_until(lambda: not any(map(is_alive, processes)), "the stopped workers have been ended")

    def test_a_hang_in_a_step(self, tmp_path: Path) -> None:
        """A step that takes longer than `step_timeout_s` is given up, and the request run again."""
        self.need_option("step_timeout_s")
        engine = self.shared_engine(step_timeout_s=2.0)
        request = self.request(fault=fault("wait", once=tmp_path / "once", file=tmp_path / "never"))
        begun = time.monotonic()
        [output] = self.step(engine, request)
        self.note_seconds("finished elsewhere", time.monotonic() - begun)
        self.assert_right(output, request)
        assert time.monotonic() - begun > 1.5

    def test_health_tells_of_stopped_workers(self) -> None:
        """While all workers are held up, `check_health` does not say that all is well, and does not hang."""
        engine = self.shared_engine()
        with stopped(self._pids(engine)):
            begun = time.monotonic()
            with pytest.raises(OmniError):
                engine.check_health()
            took = time.monotonic() - begun
        self.note_seconds("check_health of stopped workers", took)
        assert took < 2.0
        wait_until(lambda: is_healthy(engine), "healthy again when they go on", self.patience_s)

    def test_closing_with_a_stopped_worker(self) -> None:
        """Closing does not wait for a worker that is held up, and leaves none behind."""
        engine = self.engine()
        handle = engine.submit(self.request(num_inference_steps=LONG))
        next(event for event in handle.events(timeout=self.patience_s) if event.kind == "started")
        processes = [identity(pid) for pid in self._pids(engine)]
        with stopped([pid for pid, _ in processes]):
            begun = time.monotonic()
            self.close(engine)
            self.note_seconds("close", time.monotonic() - begun)
            assert [process for process in processes if is_alive(process)] == []
        assert handle.result(5.0).finish_reason == "error"


def _touch_and_wait(worker: object, begun: str, file: str) -> None:
    Path(begun).touch()
    calls.wait_then_return(worker, file, None)
