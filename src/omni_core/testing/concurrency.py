"""Many callers at once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from omni_core import AsyncDiffusionEngine, DiffusionEngine, OmniDiffusionRequest, OmniRequestOutput, RequestHandle
from omni_core.errors import EngineOverloadedError, RequestError
from omni_core.testing import calls
from omni_core.testing.base import NARROW, ConformanceBase
from omni_core.testing.bounds import bounded, in_threads, wait_until
from omni_core.testing.injection import begun_file, fault


class Concurrency(ConformanceBase):
    """Many callers at once."""

    theme = "concurrency"

    def _block(self, engine: DiffusionEngine, file: Path) -> RequestHandle:
        """Submit a request that holds its worker up until `file` exists, and return when it does."""
        handle = engine.submit(self.request(fault=fault("wait", step=1, file=file)))
        self._handles.append(handle)
        wait_until(begun_file(file).exists, "the request is at work")
        return handle

    def test_submit_from_sixteen_threads(self) -> None:
        """Each of sixteen threads gets its own picture."""
        engine = self.shared_engine()
        requests = [self.request(seed=seed % 4) for seed in range(16)]

        def ask(request: OmniDiffusionRequest) -> OmniRequestOutput:
            return self.step(engine, request)[0]

        outputs = in_threads([lambda request=request: ask(request) for request in requests])  # type: ignore[misc]
        for request, output in zip(requests, outputs, strict=True):
            self.assert_right(output, request)

    def test_async_engine(self) -> None:
        """Under asyncio, streams of events and whole steps side by side give the right pictures."""
        requests = [self.request(seed=seed) for seed in range(6)]

        async def stream(engine: AsyncDiffusionEngine, request: OmniDiffusionRequest) -> OmniRequestOutput | None:
            output = None
            async for event in engine.generate(request):
                output = event.output
            return output

        async def main() -> list[OmniRequestOutput | None]:
            async with await AsyncDiffusionEngine.create(self.make_config()) as engine:
                streams = [stream(engine, request) for request in requests[:3]]
                outputs, rest = await asyncio.wait_for(
                    asyncio.gather(asyncio.gather(*streams), engine.step(requests[3:])), self.patience_s
                )
                return [*outputs, *rest]

        for request, output in zip(requests, asyncio.run(main()), strict=True):
            assert output is not None
            self.assert_right(output, request)

    def test_the_same_id_twice(self, tmp_path: Path) -> None:
        """An id that is in flight is refused; when its request has ended it is free again."""
        engine, file = self.shared_engine(), tmp_path / "go on"
        handle = engine.submit(self.request(request_id="twin", fault=fault("wait", step=1, file=file)))
        try:
            with pytest.raises(RequestError, match="'twin'"):
                engine.submit(self.request(request_id="twin"))
            with pytest.raises(RequestError, match="'pair'"):
                engine.submit_all([self.request(request_id="pair"), self.request(request_id="pair")])
        finally:
            file.touch()
        assert self.result(handle).finish_reason == "finished"
        assert self.step(engine, self.request(request_id="twin"))[0].finish_reason == "finished"

    def test_priorities(self, tmp_path: Path) -> None:
        """Of the requests that wait, the one with the highest priority goes first."""
        engine, file = self.narrow_engine(), tmp_path / "go on"
        ended: list[str] = []
        blocker = self._block(engine, file)
        handles = [engine.submit(self.request(request_id=f"p{level}", priority=level)) for level in (0, 5, 1, -3)]
        for handle in handles:
            handle.add_done_callback(lambda done: ended.append(done.request_id))
        file.touch()
        blocker.abort()
        for handle in handles:
            assert self.result(handle).finish_reason == "finished"
        wait_until(lambda: len(ended) == 4, "all callbacks were called")
        assert ended == ["p5", "p1", "p0", "p-3"]

    def test_max_waiting(self, tmp_path: Path) -> None:
        """A request too many is refused at once; when there is room again, it is taken."""
        engine, file = self.narrow_engine(), tmp_path / "go on"
        blocker = self._block(engine, file)
        waiting = [engine.submit(self.request(seed=seed)) for seed in range(NARROW)]
        with pytest.raises(EngineOverloadedError, match="max_waiting"):
            engine.submit(self.request())
        file.touch()
        for handle in (blocker, *waiting):
            assert self.result(handle).finish_reason == "finished"
        self.assert_serves(engine)

    def test_several_wait_for_one_result(self) -> None:
        """Everybody who waits for a request gets the same output."""
        handle = self.shared_engine().submit(self.request(num_inference_steps=20))
        outputs = in_threads([lambda: handle.result(self.patience_s)] * 6)
        assert len({id(output) for output in outputs}) == 1
        self.assert_right(outputs[0], handle.request)

    def test_submit_in_a_done_callback(self) -> None:
        """A callback may submit the next request."""
        engine = self.shared_engine()
        following: list[RequestHandle] = []
        first = engine.submit(self.request())
        first.add_done_callback(lambda done: following.append(engine.submit(self.request(seed=2))))
        self.result(first)
        wait_until(lambda: following, "the callback was called")
        self.assert_right(self.result(following[0]), following[0].request)

    def test_everything_at_once(self) -> None:
        """Requests, failures, aborts and calls from eight threads: each gets what is due to it."""
        engine = self.shared_engine()

        def work(number: int) -> None:
            for turn in range(4):
                good = self.request(seed=(number + turn) % 4, num_inference_steps=6)
                handle = engine.submit(good)
                bad = engine.submit(self.request(fault=fault("raise")))
                given_up = engine.submit(self.request(num_inference_steps=30))
                given_up.abort()
                token = (number, turn)
                assert engine.collective_rpc(calls.echo, self.patience_s, (token,), unique_reply_rank=0) == token
                self.assert_right(self.result(handle), good)
                assert "injected" in str(self.result(bad).error)
                assert self.result(given_up).finish_reason in ("aborted", "finished")

        in_threads([lambda number=number: work(number) for number in range(8)], 2 * self.patience_s)  # type: ignore[misc]
        engine.check_health()

    def test_health_under_load(self) -> None:
        """`check_health` answers within a second while all workers are busy."""
        engine = self.shared_engine()
        handles = [engine.submit(self.request(seed=seed, num_inference_steps=300)) for seed in range(12)]
        self._handles += handles
        next(event for event in handles[0].events(timeout=self.patience_s) if event.kind == "started")
        slowest = 0.0
        for _ in range(5):
            begun = time.monotonic()
            engine.check_health()
            slowest = max(slowest, time.monotonic() - begun)
        self.note_seconds("slowest check_health", slowest)
        assert slowest < 1.0
        for handle in handles:
            handle.abort()

    def test_health_while_a_worker_is_held_up(self, tmp_path: Path) -> None:
        """`check_health` does not wait for a step that takes long."""
        engine, file = self.shared_engine(), tmp_path / "go on"
        handle = self._block(engine, file)
        begun = time.monotonic()
        try:
            bounded(engine.check_health, "check_health", 5.0)
        finally:
            file.touch()
        took = time.monotonic() - begun
        self.assert_right(self.result(handle), handle.request)
        assert took < 1.0
