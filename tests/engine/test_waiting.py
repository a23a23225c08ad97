"""What callers' threads read and wait for: numbers of one moment, and no wait that nobody ends."""

from __future__ import annotations

import asyncio
import decimal
import gc
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from engine.tampering import Tampered, executor_of, make_engine
from omni_core import (
    AsyncDiffusionEngine,
    DiffusionEngine,
    OmniDiffusionConfig,
    OmniDiffusionRequest,
    PluginRegistry,
    RequestEvent,
    hookimpl,
)
from omni_core.engine import core
from omni_core.engine.sleeping import Sleeping
from omni_core.errors import (
    EngineClosedError,
    ExecutorError,
    OmniError,
    RequestError,
    RPCError,
    RPCTimeoutError,
    ValidationError,
)
from omni_core.executors.inline import InlineExecutor
from omni_core.scheduler import Scheduler
from omni_core.testing.fake_worker import FakeWorker
from omni_core.timeouts import MOST_SECONDS

PATIENCE_S = 20.0
LONG = 100_000


class FakeInline(InlineExecutor):
    """The inline executor with a worker that needs no torch."""

    def _make_worker(self) -> None:
        self._worker = FakeWorker(self.config)


def ask(seed: int = 1, **fields: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(seed=seed, **{"num_inference_steps": 3, **fields})


def begun(engine: DiffusionEngine, **fields: Any) -> Any:
    handle = engine.submit(ask(num_inference_steps=LONG, **fields))
    next(event for event in handle.events(PATIENCE_S) if event.kind == "step")
    return handle


# Numbers of one moment.


def test_only_the_engines_thread_looks_at_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: set[str] = set()

    class Watched(Scheduler):
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("__"):
                looked.add(threading.current_thread().name)
            return super().__getattribute__(name)

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            looked.clear()

    monkeypatch.setattr(core, "Scheduler", Watched)
    with make_engine(max_num_seqs=2, max_waiting=50) as engine:
        handles = [engine.submit(ask(num_inference_steps=20)) for _ in range(20)]
        engine.stats()
        engine.abort([handle.request_id for handle in handles[::3]])
        engine.sleep()
        engine.stats()
        engine.wake_up()
        for handle in handles:
            handle.result(PATIENCE_S)
        engine.stats()
        begun(engine)
    assert looked == {"omni-engine"}


def test_each_request_is_in_one_number_at_every_moment() -> None:
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with make_engine(max_num_seqs=64) as engine:
            engine.sleep()
            handles = [engine.submit(ask(seed, num_inference_steps=1 + seed % 7)) for seed in range(400)]
            for handle in handles:
                next(handle.events(PATIENCE_S))
            ended: dict[str, int] = {}
            aborted: set[int] = set()
            asked = 0
            engine.wake_up()
            while sum(ended.values()) < len(handles):
                stats = engine._core.stats()
                asked += 1
                ended = stats.ended
                in_all = stats.waiting + stats.running + stats.parked + sum(ended.values())
                # One that a replica was told to give up has no place any more, and has not ended yet.
                assert len(handles) - len(aborted) + ended.get("aborted", 0) <= in_all <= len(handles)
                assert stats.running <= 2 * 64
                assert min(stats.waiting, stats.running, stats.parked) >= 0
                if asked % 50 == 0:
                    aborted.add(asked % len(handles))
                    handles[asked % len(handles)].abort()
            assert asked > 20
    finally:
        sys.setswitchinterval(switch)


def test_who_has_the_result_finds_it_counted() -> None:
    with make_engine() as engine:
        for number in range(1, 100):
            engine.step([ask()], PATIENCE_S)
            stats = engine.stats()
            assert (stats.ended, stats.running, stats.waiting) == ({"finished": number}, 0, 0)


def test_stats_of_the_inline_worker_are_a_copy() -> None:
    from small_pipelines import images

    with DiffusionEngine(pipeline=images.ddpm()) as engine:
        [first] = engine.collective_rpc("stats")
        engine.step([ask(), ask()], PATIENCE_S)
        [second] = engine.collective_rpc("stats")
    assert first.calls == 0
    assert second.calls > 0


def test_stats_do_not_wait_for_a_worker_that_is_held_up() -> None:
    release = threading.Event()
    with DiffusionEngine(OmniDiffusionConfig(executor_class=FakeInline)) as engine:
        assert engine.stats().stacking is not None
        thread = threading.Thread(target=engine.collective_rpc, args=(lambda worker: release.wait(PATIENCE_S),))
        thread.start()
        stats = engine.stats(timeout=0.05)
        assert stats.stacking is None
        assert stats.ended == {}
        release.set()
        thread.join(PATIENCE_S)


# asyncio.


def run_with_a_full_pool(main: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Run in a loop whose default pool has no thread free, and never will."""
    release = threading.Event()

    async def bounded() -> None:
        loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(1)
        loop.set_default_executor(pool)
        hanging = loop.run_in_executor(None, release.wait, 2 * PATIENCE_S)
        try:
            await asyncio.wait_for(main(), PATIENCE_S)
        finally:
            release.set()
            await hanging

    asyncio.run(bounded())


def test_nothing_depends_on_the_default_pool() -> None:
    async def main() -> None:
        config = OmniDiffusionConfig(executor_class=FakeInline)
        async with await AsyncDiffusionEngine.create(config) as engine:
            assert (await engine.step([ask(7)]))[0].images == [7]
            async for event in engine.generate(ask(num_inference_steps=LONG, request_id="long")):
                if event.kind == "step":
                    engine.abort("long")
            assert event.output is not None
            assert event.output.finish_reason == "aborted"
            assert (await engine.stats()).ended == {"finished": 1, "aborted": 1}
            await engine.check_health()
            assert await engine.collective_rpc("check_health") == [None]
            await engine.sleep()
            await engine.wake_up()

    run_with_a_full_pool(main)


def test_calls_that_hang_hold_up_nothing_else_and_end_with_the_engine() -> None:
    release = threading.Event()
    began = threading.Event()

    def hang(worker: Any) -> None:
        began.set()
        release.wait(PATIENCE_S)

    class TwoThreads(Tampered):
        """Calls go to a thread of their own, so that one that hangs leaves steps alone."""

        def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> Any:
            if callable(method):
                return [method(worker) for worker in self.workers]
            return super().collective_rpc(method, *args, **kwargs)

    async def main() -> None:
        async with await AsyncDiffusionEngine.create(OmniDiffusionConfig(executor_class=TwoThreads)) as engine:
            hanging = [asyncio.create_task(engine.collective_rpc(hang)) for _ in range(40)]
            while not began.is_set():
                await asyncio.sleep(0)
            assert (await engine.step([ask(3)]))[0].images == [3]
            assert (await engine.stats()).ended == {"finished": 1}
            await engine.check_health()
            release.set()
            assert await asyncio.gather(*hanging) == [[None]] * 40

    asyncio.run(asyncio.wait_for(main(), 2 * PATIENCE_S))
    for thread in threading.enumerate():
        if thread.name == "omni-async-call":
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def test_closing_ends_calls_that_wait_for_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_core.executors.inline._CLOSE_TIMEOUT_S", 0.1)
    release, began = threading.Event(), threading.Event()

    def hang(worker: Any) -> None:
        began.set()
        release.wait(PATIENCE_S)

    async def main() -> None:
        engine = await AsyncDiffusionEngine.create(OmniDiffusionConfig(executor_class=FakeInline))
        calls = [asyncio.create_task(engine.collective_rpc(hang)) for _ in range(8)]
        calls.append(asyncio.create_task(engine.sleep()))
        while not began.is_set():
            await asyncio.sleep(0)
        await engine.close()
        for ended in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(ended, OmniError)
        release.set()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_a_close_that_is_cancelled_closes_all_the_same(wait_until: Callable[..., None]) -> None:
    async def main() -> AsyncDiffusionEngine:
        engine = await AsyncDiffusionEngine.create(OmniDiffusionConfig(executor_class=FakeInline))
        task = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return engine

    engine = asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    wait_until(lambda: engine.engine._core._closed)


# Timeouts as callers give them.

NOT_AT_ALL = [0, -1, -0.5, -math.inf, np.float32(0), np.int64(-3), decimal.Decimal(0)]
LONG_ENOUGH = [None, math.inf, 1e10, 1e300, 10**400, np.float64(30.0), np.int32(30), decimal.Decimal(30), 30]
NO_NUMBER = [math.nan, np.float64("nan"), "3", True, [1]]


@pytest.fixture(scope="module")
def engine() -> Any:
    with DiffusionEngine(OmniDiffusionConfig(executor_class=FakeInline)) as made:
        yield made


WAITS: dict[str, Callable[[DiffusionEngine, Any], Any]] = {
    "result": lambda engine, timeout: engine.submit(ask()).result(timeout),
    "events": lambda engine, timeout: list(engine.submit(ask()).events(timeout)),
    "step": lambda engine, timeout: engine.step([ask()], timeout),
    "collective_rpc": lambda engine, timeout: engine.collective_rpc("check_health", timeout),
    "collective_rpc of the executor": lambda engine, timeout: engine.executor.collective_rpc("check_health", timeout),
    "sleep": lambda engine, timeout: (engine.sleep(timeout=timeout), engine.wake_up(timeout=timeout)),
    "sleep by a call": lambda engine, timeout: engine.collective_rpc("sleep", timeout),
    "stats": lambda engine, timeout: engine.stats(timeout),
}


@pytest.mark.parametrize("what", WAITS)
@pytest.mark.parametrize("timeout", LONG_ENOUGH, ids=repr)
def test_a_long_timeout(engine: DiffusionEngine, what: str, timeout: Any) -> None:
    WAITS[what](engine, timeout)
    engine.wake_up()
    engine.check_health()


@pytest.mark.parametrize("what", [what for what in WAITS if what != "stats"])
@pytest.mark.parametrize("timeout", NOT_AT_ALL, ids=repr)
def test_a_timeout_of_nothing(engine: DiffusionEngine, what: str, timeout: Any) -> None:
    release, entered = threading.Event(), threading.Event()

    def block(worker: Any) -> None:
        entered.set()
        release.wait(PATIENCE_S)

    holding = threading.Thread(target=engine.collective_rpc, args=(block,))
    holding.start()
    assert entered.wait(PATIENCE_S)
    try:
        with pytest.raises(TimeoutError):
            WAITS[what](engine, timeout)
    finally:
        release.set()
        holding.join(PATIENCE_S)
    engine.wake_up()
    assert engine.step([ask(5)], PATIENCE_S)[0].images == [5]


@pytest.mark.parametrize("what", WAITS)
@pytest.mark.parametrize("timeout", NO_NUMBER, ids=repr)
def test_a_timeout_that_is_no_number(engine: DiffusionEngine, what: str, timeout: Any) -> None:
    with pytest.raises(ValidationError, match="timeout = "):
        WAITS[what](engine, timeout)
    assert engine.sleep_level == 0
    engine.check_health()


@pytest.mark.parametrize("timeout_s", [1e9, 1e10, 1e300])
def test_a_time_limit_beyond_every_wait_is_refused_with_the_longest(timeout_s: float) -> None:
    with pytest.raises(RequestError, match=r"timeout_s = .* The closest valid value is 2000000\.0"):
        ask(4, timeout_s=timeout_s)


@pytest.mark.parametrize("timeout_s", [1e5, MOST_SECONDS])
def test_a_long_time_limit_of_a_request_does_not_end_the_engine(timeout_s: float) -> None:
    with make_engine() as engine:
        assert engine.step([ask(4, timeout_s=timeout_s)], PATIENCE_S)[0].images == [4]
        assert engine.step([ask(5)], PATIENCE_S)[0].images == [5]


def test_a_time_limit_outlives_no_output() -> None:
    with make_engine() as engine:
        outputs = weakref.WeakSet()
        for _ in range(4):
            handles = engine.submit_all([ask(timeout_s=3600.0) for _ in range(100)])
            for handle in handles:
                handle.result(PATIENCE_S)
            outputs.update(handles)
        engine.step([ask(1)], PATIENCE_S)
        del handle, handles
        gc.collect()
        assert len(outputs) == 0
        assert len(engine._core._time_limits) < 250
        # One of a name that had another limit before is ended by its own.
        engine.sleep()
        late = engine.submit(ask(request_id="again", timeout_s=0.3))
        late.abort()
        late.result(PATIENCE_S)
        again = engine.submit(ask(request_id="again", timeout_s=3600.0))
        with pytest.raises(TimeoutError):
            again.result(0.6)
        engine.wake_up()
        assert again.result(PATIENCE_S).finish_reason == "finished"


def test_a_long_start_up_time() -> None:
    with DiffusionEngine(OmniDiffusionConfig(executor_class=FakeInline, startup_timeout_s=MOST_SECONDS)) as engine:
        engine.check_health()


# Waits that the end of the executor ends.


def test_closing_wakes_whoever_waits_for_the_worker_of_the_inline_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_core.executors.inline._CLOSE_TIMEOUT_S", 0.1)
    release, entered = threading.Event(), threading.Event()

    class Hangs(FakeInline):
        def _make_worker(self) -> None:
            super()._make_worker()
            self._worker.execute_model = self.hang

        def hang(self, requests: Any) -> Any:
            entered.set()
            release.wait(PATIENCE_S)
            return []

    engine = DiffusionEngine(OmniDiffusionConfig(executor_class=Hangs))
    told: dict[str, BaseException] = {}

    def call(name: str, function: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            try:
                function()
            except BaseException as error:
                told[name] = error

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    threads = [call("running", lambda: engine.executor.execute_model([ask()]))]
    assert entered.wait(PATIENCE_S)
    threads += [
        call("waiting", lambda: engine.executor.execute_model([ask()])),
        call("call", lambda: engine.collective_rpc("check_health")),
        call("sleep", engine.sleep),
        call("wake_up", engine.wake_up),
        call("result", lambda: engine.submit(ask()).result().raise_for_error()),
    ]
    while engine.sleep_level == 0:
        assert threads[3].is_alive()
    try:
        engine.close()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        release.set()
    assert sorted(told) == ["call", "result", "running", "sleep", "waiting", "wake_up"]
    assert "the call 'execute_model' had not ended by then" in str(told.pop("running"))
    assert isinstance(told.pop("result"), EngineClosedError)
    for name, error in told.items():
        assert isinstance(error, ExecutorError | EngineClosedError), name
        assert "shut down" in str(error) or "closed" in str(error)


def test_a_listener_that_never_returns_keeps_nobody_from_the_result() -> None:
    release, entered = threading.Event(), threading.Event()

    def hang(event: RequestEvent) -> None:
        if event.kind == "finished":
            entered.set()
            release.wait(PATIENCE_S)

    with make_engine() as engine:
        engine.sleep()
        handle = engine.submit(ask(6))
        next(handle.events(PATIENCE_S))
        handle.subscribe(hang)
        engine.wake_up()
        try:
            assert entered.wait(PATIENCE_S)
            assert handle.result(PATIENCE_S).images == [6]
            assert list(handle.events(PATIENCE_S))[-1].kind == "finished"
            assert handle.past_events()[-1].output is handle.result(0)
        finally:
            release.set()


def test_every_listener_hears_every_event_once_and_in_order() -> None:
    with make_engine() as engine:
        handle = engine.submit(ask(num_inference_steps=400))
        heard: list[list[RequestEvent]] = [[] for _ in range(30)]

        def subscribe(number: int) -> None:
            handle.subscribe(heard[number].append)

        # One that comes in while another is told.
        handle.subscribe(lambda event: handle.subscribe(nested.append) if event.kind == "started" else None)
        nested: list[RequestEvent] = []
        threads = [threading.Thread(target=subscribe, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        handle.result(PATIENCE_S)
        engine.step([ask()], PATIENCE_S)  # the listeners of the first have been told by then
        events = handle.past_events()
        assert all(one == events for one in heard)
        assert nested == events


def test_an_observer_that_raises_keyboard_interrupt_does_not_end_the_engine() -> None:
    class Observer:
        @hookimpl
        def omni_request_step(self) -> None:
            raise KeyboardInterrupt

    plugins = PluginRegistry()
    plugins.register(Observer())
    with DiffusionEngine(OmniDiffusionConfig(executor_class=FakeInline), plugins=plugins) as engine:
        assert engine.step([ask(1), ask(2)], PATIENCE_S)[1].images == [2]


# Sleep.


def test_calls_by_the_name_of_a_workers_own_method() -> None:
    with make_engine() as engine:
        assert engine.collective_rpc("sleep") == [None, None]
        assert engine.sleep_level == 1
        assert engine.collective_rpc("sleep", args=(2,), unique_reply_rank=1) is None
        assert engine.sleep_level == 2
        assert [worker.sleep_level for worker in executor_of(engine).workers] == [2, 2]
        handle = engine.submit(ask(3))
        with pytest.raises(TimeoutError):
            handle.result(0.05)
        assert engine.collective_rpc("wake_up", timeout=PATIENCE_S) == [None, None]
        assert handle.result(PATIENCE_S).images == [3]
        for call in (
            lambda: engine.collective_rpc("sleep", unique_reply_rank=2),
            lambda: engine.collective_rpc("sleep", args=(1, 2)),
            lambda: engine.collective_rpc("sleep", kwargs={"lvel": 1}),
            lambda: engine.collective_rpc("wake_up", args=(1,)),
        ):
            with pytest.raises(RPCError):
                call()
        with pytest.raises(ValueError, match="sleep level 3"):
            engine.collective_rpc("sleep", kwargs={"level": 3})
        for name, words in {
            "close": "engine.close",
            "execute_step": "engine.submit",
            "call": "name of the method itself",
        }.items():
            with pytest.raises(RPCError, match=f"'{name}' is not called by collective_rpc.*{words}"):
                engine.collective_rpc(name, args=([ask()],))
        assert engine.collective_rpc("interrupt") == [None, None]
        outputs = engine.collective_rpc("execute_model", args=([ask(8)],))
        assert [output.images for [output] in outputs] == [[8], [8]]
        assert engine.sleep_level == 0
        assert engine.step([ask(9)], PATIENCE_S)[0].images == [9]


@pytest.mark.parametrize("name", ["close", "execute_step", "call"])
@pytest.mark.parametrize("non_block", [False, True])
def test_they_are_refused_for_the_inline_executor_too(engine: DiffusionEngine, name: str, non_block: bool) -> None:
    with pytest.raises(RPCError, match="is not called by collective_rpc"):
        engine.collective_rpc(name, non_block=non_block)
    assert engine.step([ask(9)], PATIENCE_S)[0].images == [9]


@pytest.mark.parametrize("name", ["sleep", "wake_up"])
def test_a_change_of_sleep_is_waited_for(engine: DiffusionEngine, name: str) -> None:
    with pytest.raises(RPCError, match=f"engine.{name}"):
        engine.collective_rpc(name, non_block=True)
    assert engine.step([ask(9)], PATIENCE_S)[0].images == [9]


def test_a_sleep_that_takes_too_long(engine: DiffusionEngine) -> None:
    release, entered = threading.Event(), threading.Event()

    def block(worker: Any) -> None:
        entered.set()
        release.wait(PATIENCE_S)

    holding = threading.Thread(target=engine.collective_rpc, args=(block,))
    holding.start()
    assert entered.wait(PATIENCE_S)
    with pytest.raises(RPCTimeoutError, match="'sleep' did not return within 0.05 s"):
        engine.collective_rpc("sleep", timeout=0.05)
    release.set()
    holding.join(PATIENCE_S)
    # It may sleep by now, or not; waking it up is right either way.
    engine.wake_up()
    assert engine.collective_rpc(lambda worker: worker.sleep_level) == [0]
    assert engine.step([ask(2)], PATIENCE_S)[0].images == [2]


def test_a_sleep_waits_for_its_turn_no_longer_than_its_timeout() -> None:
    release, entered = threading.Event(), threading.Event()

    def tamper(method: str, replica: int, answer: Any) -> Any:
        if method == "collective_rpc" and not entered.is_set():
            entered.set()
            release.wait(PATIENCE_S)
        return answer

    with make_engine() as engine:
        executor_of(engine).tamper = tamper
        first = threading.Thread(target=engine.sleep)
        first.start()
        assert entered.wait(PATIENCE_S)
        try:
            with pytest.raises(RPCTimeoutError, match="another sleep or wake_up is at work"):
                engine.wake_up(timeout=0.05)
        finally:
            release.set()
            first.join(PATIENCE_S)
        engine.wake_up()
        assert engine.step([ask(2)], PATIENCE_S)[0].images == [2]


def test_a_sleep_that_one_worker_refuses_leaves_none_asleep() -> None:
    with make_engine() as engine:

        def refuse(level: int) -> None:
            raise ExecutorError("No room in host memory.")

        executor_of(engine).workers[1].sleep = refuse  # type: ignore[method-assign,assignment]
        with pytest.raises(ExecutorError, match="No room"):
            engine.sleep()
        assert engine.sleep_level == 0
        assert engine.collective_rpc(lambda worker: worker.sleep_level) == [0, 0]
        outputs = engine.step([ask(seed) for seed in range(6)], PATIENCE_S)
        assert [output.images for output in outputs] == [[seed] for seed in range(6)]


def test_a_request_that_came_while_a_sleep_was_refused_is_served() -> None:
    handles: list[Any] = []
    with make_engine() as engine:

        def tamper(method: str, replica: int, answer: Any) -> Any:
            if method == "collective_rpc" and not handles:
                handles.append(engine.submit(ask(4)))
                next(handles[0].events(PATIENCE_S))
                with pytest.raises(TimeoutError):
                    handles[0].result(0.05)  # the engine has seen that it waits
                raise ExecutorError("No room in host memory.")
            return answer

        executor_of(engine).tamper = tamper
        with pytest.raises(ExecutorError, match="No room"):
            engine.sleep()
        assert handles[0].result(PATIENCE_S).images == [4]


def test_a_worker_that_sleeps_behind_the_engines_back_is_not_asked_without_end(
    wait_until: Callable[..., None],
) -> None:
    asked: list[float] = []

    def note(method: str, replica: int, answer: Any) -> Any:
        if method == "execute_step":
            asked.append(time.monotonic())
        return answer

    with make_engine(data_parallel_size=1) as engine:
        handle = begun(engine)
        engine.collective_rpc(lambda worker: worker.sleep())
        executor_of(engine).tamper = note
        wait_until(lambda: len(asked) > 2 and asked[-1] - asked[-2] > 0.05)
        assert len(asked) < 60, "it was asked as fast as it answered"
        # Aborts and calls go through at once, and it goes on when it is woken.
        steps = len(handle.past_events())
        engine.collective_rpc(lambda worker: worker.wake_up())
        wait_until(lambda: len(handle.past_events()) > steps + 3)
        engine.collective_rpc(lambda worker: worker.sleep())
        handle.abort()
        assert handle.result(PATIENCE_S).finish_reason == "aborted"


@pytest.mark.parametrize("waits_for", ["sleep", "is_ready"])
def test_waiting_for_company_costs_nothing_while_nothing_can_run(waits_for: str) -> None:
    asked = 0

    def note(method: str, replica: int, answer: Any) -> Any:
        nonlocal asked
        if method == "is_ready":
            asked += 1
            return waits_for == "sleep"
        return answer

    with make_engine(data_parallel_size=1, max_batch_wait_ms=20.0) as engine:
        if waits_for == "sleep":
            engine.sleep()
        executor_of(engine).tamper = note
        handle = engine.submit(ask(5))
        with pytest.raises(TimeoutError):
            handle.result(0.3)
        assert asked < 20
        executor_of(engine).tamper = None
        engine.wake_up()
        engine.executor.notify_change()
        assert handle.result(PATIENCE_S).images == [5]


# Closing.


def test_a_close_that_is_interrupted_closes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    handle = begun(engine)
    thread = engine._core._thread
    join = thread.join

    def interrupted(timeout: float | None = None) -> None:
        monkeypatch.setattr(thread, "join", join)
        raise KeyboardInterrupt

    monkeypatch.setattr(thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    assert isinstance(handle.result(PATIENCE_S).error, ExecutorError | EngineClosedError)
    assert executor_of(engine)._closed
    engine.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_an_interrupt_before_its_turn_to_sleep_leaves_the_turn_to_others() -> None:
    sleeping = Sleeping(PluginRegistry([]))
    calls: list[Any] = []

    class Interrupts(threading.Condition().__class__):  # type: ignore[misc]
        def __exit__(self, *arguments: Any) -> None:
            super().__exit__(*arguments)
            if sleeping._has_turn and not self.was_raised:
                self.was_raised = True
                raise KeyboardInterrupt

        was_raised = False

    def call(*arguments: Any, **keywords: Any) -> None:
        calls.append(arguments)

    sleeping._changed = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        sleeping.sleep(call, 1, PATIENCE_S)
    assert (calls, sleeping.level) == ([], 0)
    sleeping.sleep(call, 1, 1.0)
    assert (calls, sleeping.level) == ([("sleep",)], 1)


def test_a_worker_that_is_replaced_while_others_wake_up_is_awake() -> None:
    sleeping = Sleeping(PluginRegistry([]))
    seen: list[tuple[int, int]] = []

    def call(method: str, **keywords: Any) -> None:
        seen.append((sleeping.level, sleeping.level_of_new))

    sleeping.sleep(call, 2, PATIENCE_S)
    sleeping.wake_up(call, PATIENCE_S)
    assert seen == [(2, 2), (2, 0)], "requests wait until all are awake, and a new worker is not put to sleep"
    assert (sleeping.level, sleeping.level_of_new) == (0, 0)


def test_a_listener_does_not_swallow_the_users_ctrl_c() -> None:
    with make_engine() as engine:
        handle = engine.submit(ask())
        handle.result(PATIENCE_S)

        def listener(event: RequestEvent) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            handle.subscribe(listener)
