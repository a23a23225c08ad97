"""The engine under asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from omni_core import AsyncDiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.errors import EngineClosedError, EngineOverloadedError, RequestError
from small_pipelines import images

LONG = 900


def quick(**fields: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(**{"num_inference_steps": 2, "seed": 1, **fields})


@asynccontextmanager
async def make_engine(**options: Any) -> AsyncIterator[AsyncDiffusionEngine]:
    engine = await AsyncDiffusionEngine.create(OmniDiffusionConfig(**options), pipeline=images.ddpm())
    async with engine:
        yield engine


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, 60)

    return asyncio.run(bounded())


def test_generate_yields_every_event() -> None:
    async def main() -> None:
        async with make_engine() as engine:
            events = [event async for event in engine.generate(quick(num_inference_steps=3))]
            assert [event.kind for event in events if event.kind != "step"] == ["queued", "started", "finished"]
            assert [event.step for event in events if event.kind == "step" and event.step > 0] == [1, 2, 3]
            assert events[-1].output is not None
            assert events[-1].output.finish_reason == "finished"

    run(main())


def test_many_at_once() -> None:
    async def main() -> None:
        async with make_engine() as engine:
            outputs = await asyncio.gather(*(engine.step([quick(seed=seed % 3)]) for seed in range(30)))
            pictures = [output.images[0].tobytes() for [output] in outputs]
            assert len(set(pictures)) <= 3 * 3  # the last bits may differ with the company
            assert all(output.finish_reason == "finished" for [output] in outputs)
            stats = await engine.stats()
            assert stats.ended == {"finished": 30}
            stacking = stats.stacking
            assert stacking is not None
            # Each call has one row: those beyond the calls were run once more, alone, to verify the kind.
            serving = stacking.forwards - (stacking.rows - stacking.calls)
            assert stacking.calls / serving > 3

    run(main())


@pytest.mark.parametrize("way", ["cancel", "leave", "cancel step"])
def test_a_consumer_that_goes_away_aborts_the_request(way: str) -> None:
    async def main() -> None:
        async with make_engine() as engine:
            started = asyncio.Event()
            request = quick(num_inference_steps=LONG, request_id="long")

            async def consume() -> None:
                async for event in engine.generate(request):
                    if event.kind == "step":
                        started.set()

            if way == "leave":
                events = engine.generate(request)
                async for event in events:
                    if event.kind == "step":
                        break
                await events.aclose()  # type: ignore[attr-defined]
            elif way == "cancel":
                task = asyncio.create_task(consume())
                await started.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(engine.step([request]), 0.2)
            while (await engine.stats()).ended != {"aborted": 1}:
                await asyncio.sleep(0)
            assert (await engine.step([quick()]))[0].finish_reason == "finished"

    run(main())


def test_the_loop_is_never_blocked() -> None:
    async def main() -> None:
        async with make_engine() as engine:
            longest = 0.0
            loop = asyncio.get_running_loop()
            work = asyncio.create_task(engine.step([quick(num_inference_steps=100, seed=seed) for seed in range(4)]))
            while not work.done():
                before = loop.time()
                await asyncio.sleep(0)
                longest = max(longest, loop.time() - before)
            took = (await work)[0].metrics.total_s
            assert longest < took / 2, "the loop waited for the engine"

    run(main())


def test_bad_requests_overload_and_closing() -> None:
    async def main() -> None:
        async with make_engine(max_num_seqs=2, max_waiting=3) as engine:
            with pytest.raises(RequestError):
                await engine.step([quick(prompt="x")])
            await engine.sleep()
            tasks = [asyncio.create_task(engine.step([quick(seed=seed)])) for seed in range(5)]
            await asyncio.sleep(0)
            with pytest.raises(EngineOverloadedError, match="max_waiting = 3"):
                await engine.step([quick()])
            with pytest.raises(EngineOverloadedError):
                async for _ in engine.generate(quick()):
                    pass
            await engine.wake_up()
            assert all([(await task)[0].finish_reason == "finished" for task in tasks])
            await engine.check_health()
            assert await engine.collective_rpc("check_health") == [None]
            waiting = asyncio.create_task(engine.step([quick(num_inference_steps=LONG)]))
            await asyncio.sleep(0)
        assert isinstance((await waiting)[0].error, EngineClosedError)
        with pytest.raises(EngineClosedError):
            await engine.step([quick()])

    run(main())


def test_two_loops_share_an_engine() -> None:
    engine = AsyncDiffusionEngine(pipeline=images.ddpm())
    results: list[Any] = []

    def in_a_loop_of_its_own() -> None:
        results.append(asyncio.run(engine.step([quick()]))[0].finish_reason)

    threads = [threading.Thread(target=in_a_loop_of_its_own) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == ["finished", "finished"]
    asyncio.run(engine.close())


def test_thousands_wait_at_little_cost() -> None:
    async def main() -> None:
        async with make_engine(max_num_seqs=16) as engine:
            await engine.sleep()
            tasks = [asyncio.create_task(engine.step([quick(num_inference_steps=1)])) for _ in range(3000)]
            while (await engine.stats()).waiting < 3000:
                await asyncio.sleep(0)
            assert threading.active_count() < 60
            for task in tasks[20:]:
                task.cancel()
            await engine.wake_up()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(result, list) for result in done) == 20

    run(main())
