"""A caller that is interrupted (Ctrl-C) at any moment loses the reply to its own call, and nobody else's."""

from __future__ import annotations

import dis
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import multiproc_calls as calls
import numpy as np
import psutil
import pytest

import omni_core.replicas
import omni_core.wire
from omni_core import DiffusionEngine, OmniDiffusionConfig, PluginRegistry, hookimpl
from omni_core.errors import OmniError, RPCTimeoutError, WorkerDiedError

MODEL = "omni_core.testing.pipelines:class_conditional"
DRIVER_CODE = tuple(str(Path(package.__path__[0])) for package in (omni_core.replicas, omni_core.wire))
BOUND_S = 60.0


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two replicas"])
def engine(request: pytest.FixtureRequest) -> Iterator[DiffusionEngine]:
    config = OmniDiffusionConfig(executor_class="multiproc", model=MODEL, data_parallel_size=request.param)
    with DiffusionEngine(config) as made:
        yield made


def pids(engine: DiffusionEngine) -> list[int]:
    return [pid for replica in engine.executor.worker_pids() for pid in replica]  # type: ignore[attr-defined]


# The instructions after which Python heeds signals.
HEEDING = {"CALL", "CALL_FUNCTION_EX", "CALL_KW", "CALL_FUNCTION", "CALL_METHOD", "JUMP_BACKWARD", "RESUME"}


class InterruptAt:
    """Raises KeyboardInterrupt at one of the places of the driver's side where a signal handler may, by its number."""

    def __init__(self, step: int) -> None:
        self._left = step
        self.was_raised = False

    def __enter__(self) -> InterruptAt:
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter_frame(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(DRIVER_CODE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        heeds = False

        def count(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal heeds
            if event == "opcode" and not self.was_raised:
                if heeds:
                    self._left -= 1
                    if self._left == 0:
                        self.was_raised = True
                        sys.settrace(None)
                        raise KeyboardInterrupt
                heeds = _instruction(frame) in HEEDING
            return count

        return count


def _instruction(frame: FrameType) -> str:
    return dis.opname[frame.f_code.co_code[frame.f_lasti]]


def test_an_interrupt_at_any_step_of_a_call_loses_no_other_reply(engine: DiffusionEngine) -> None:
    executor = engine.executor
    before = pids(engine)
    expected = len(before)
    with ThreadPoolExecutor(1) as pool:
        for step in range(1, 100_000):
            other = pool.submit(executor.collective_rpc, calls.give_back, None, (step,))
            try:
                with InterruptAt(step) as interrupt:
                    assert executor.collective_rpc(calls.give_back, None, (-step,)) == [-step] * expected
            except KeyboardInterrupt:
                assert interrupt.was_raised
            assert other.result(BOUND_S) == [step] * expected
            if not interrupt.was_raised:
                break
        else:
            raise AssertionError("there is no end of steps")
    assert step > 40, "too few steps: what is interrupted is not the call"
    assert executor.collective_rpc(calls.give_back, BOUND_S, ("at last",)) == ["at last"] * expected
    assert pids(engine) == before, "a worker was replaced"


def test_signals_amid_calls_of_several_threads(engine: DiffusionEngine) -> None:
    """Real signals, as many as come; other threads' calls are all answered, each with its own answer."""
    executor = engine.executor
    before = pids(engine)
    main = threading.main_thread()
    is_armed = False
    stop = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal is_armed
        # Not within the standard library's locks: what is interrupted in there is no concern of this test.
        if is_armed and frame is not None and frame.f_code.co_filename.startswith(DRIVER_CODE):
            is_armed = False
            raise KeyboardInterrupt

    def disturb() -> None:
        while not stop.wait(0.0003):
            assert main.ident is not None
            signal.pthread_kill(main.ident, signal.SIGUSR1)

    def work(name: int) -> int:
        done = 0
        while not stop.is_set():
            assert executor.collective_rpc(calls.give_back, BOUND_S, ((name, done),)) == [(name, done)] * len(before)
            done += 1
        return done

    previous = signal.signal(signal.SIGUSR1, interrupt)
    num_interrupted = 0
    try:
        with ThreadPoolExecutor(4) as pool:
            disturber: Future[None] = pool.submit(disturb)
            workers = [pool.submit(work, name) for name in range(3)]
            try:
                end = time.monotonic() + 3.0
                while time.monotonic() < end or not num_interrupted:
                    try:
                        is_armed = True
                        assert executor.collective_rpc(calls.give_back, None, ("main",)) == ["main"] * len(before)
                        is_armed = False
                    except KeyboardInterrupt:
                        num_interrupted += 1
            finally:
                is_armed = False
                stop.set()
            assert all(worker.result(BOUND_S) > 0 for worker in workers)
            disturber.result(BOUND_S)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert num_interrupted > 0
    assert pids(engine) == before, "a worker was replaced"


def test_a_late_reply_is_dropped_and_later_calls_have_their_own(
    engine: DiffusionEngine, wait_until: Callable[..., None]
) -> None:
    executor = engine.executor
    for number in range(5):
        with pytest.raises(RPCTimeoutError):
            executor.collective_rpc(calls.sleep_and_give_back, 0.01, (0.1, "late"))
        assert executor.collective_rpc(calls.give_back, BOUND_S, (number,)) == [number] * len(pids(engine))
    # The worker is idle again, and so is what the late replies came over.
    wait_until(lambda: all(worker.state == "idle" for worker in executor.worker_stats()))


def test_long_and_short_replies_mix(engine: DiffusionEngine) -> None:
    executor = engine.executor
    for size in (10, 1 << 14, 1 << 15, (1 << 15) + 100, 1 << 18, 5, 1 << 21, 0):
        for data in (b"x" * size, "y" * size):
            assert executor.collective_rpc(calls.give_back, BOUND_S, (data,)) == [data] * len(pids(engine))
    # One worker replies at length, the others briefly.
    mixed = executor.collective_rpc(calls.long_on_replica, BOUND_S, (0, 1 << 18))
    assert [len(reply) for reply in mixed] == [1 << 18, *[1] * (len(pids(engine)) - 1)]


def test_a_caller_hears_of_its_workers_end(engine: DiffusionEngine, wait_until: Callable[..., None]) -> None:
    """Also where a child of the worker keeps its connections open."""
    executor = engine.executor
    with pytest.raises(WorkerDiedError):
        executor.collective_rpc(calls.fork_and_die)
    wait_until(lambda: all(executor.is_ready(replica) for replica in range(executor.num_replicas)), timeout=BOUND_S)
    assert executor.collective_rpc(calls.give_back, BOUND_S, (1,)) == [1] * len(pids(engine))


def test_short_replies_give_shared_memory_back(engine: DiffusionEngine, wait_until: Callable[..., None]) -> None:
    replicas = engine.executor._replicas  # type: ignore[attr-defined]
    workers = [worker for replica in replicas for worker in replica.workers]
    most = 0
    for _ in range(20):
        engine.collective_rpc(calls.size_of, args=(np.zeros(1 << 20, np.uint8),))
        most = max(most, *(worker._work._pool.num_in_use for worker in workers))
    assert most < 20  # they come back while calls go on, how soon hangs on the machine,
    # and that of the last call though no call follows.
    wait_until(lambda: all(worker._work._pool.num_in_use == len(worker._work._came_back) for worker in workers))


class InterruptsItsPickling:
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_an_interrupt_before_anything_was_sent_replaces_no_ranks() -> None:
    config = OmniDiffusionConfig(executor_class="multiproc", model=MODEL, cfg_parallel_size=2)
    with DiffusionEngine(config) as engine:
        before = pids(engine)
        with pytest.raises(KeyboardInterrupt):
            engine.collective_rpc(calls.give_back, args=(InterruptsItsPickling(),))
        assert engine.collective_rpc(calls.give_back, args=(1,)) == [1, 1]
        assert pids(engine) == before


def test_a_close_that_is_interrupted_leaves_no_worker(wait_until: Callable[..., None]) -> None:
    engine = DiffusionEngine(OmniDiffusionConfig(executor_class="multiproc", model=MODEL))
    [pid] = pids(engine)
    busy = engine.executor.begin_rpc(calls.sleep_and_give_back, (60.0, 1))
    executor = engine.executor
    wait_until_gone = executor._wait_until_gone  # type: ignore[attr-defined]
    seconds: list[float] = []

    def interrupted(most: float) -> bool:
        seconds.append(most)
        if len(seconds) == 1:
            raise KeyboardInterrupt
        return bool(wait_until_gone(most))

    executor._wait_until_gone = interrupted  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    wait_until(lambda: not psutil.pid_exists(pid))
    with pytest.raises(WorkerDiedError):
        busy.result(BOUND_S)


def test_who_waits_for_a_replica_that_is_being_replaced_hears_of_the_end(wait_until: Callable[..., None]) -> None:
    options = {"max_backoff_s": 3600.0, "max_failures": 100}
    engine = DiffusionEngine(OmniDiffusionConfig(executor_class="multiproc", model=MODEL, executor_options=options))
    replica = engine.executor._replicas[0]  # type: ignore[attr-defined]
    replica._failures = 12  # the next try is in minutes
    os.kill(pids(engine)[0], signal.SIGKILL)
    wait_until(lambda: not engine.executor.is_ready(0))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.executor.collective_rpc, calls.give_back, None, (1,))
        wait_until(lambda: bool(engine.executor._heard._waiters))  # type: ignore[attr-defined]
        engine.close()
        with pytest.raises(OmniError):
            waiting.result(BOUND_S)


def test_a_call_in_the_thread_that_watches_is_refused(wait_until: Callable[..., None]) -> None:
    heard: list[BaseException | Future[Any]] = []

    class Observer:
        @hookimpl
        def omni_worker_restarted(self) -> None:
            heard.append(engine.executor.begin_rpc(calls.give_back, (7,)))
            for call in (engine.executor.collective_rpc, engine.executor.execute_model):
                try:
                    call([])  # type: ignore[operator]
                except OmniError as error:
                    heard.append(error)

    plugins = PluginRegistry()
    plugins.register(Observer())
    config = OmniDiffusionConfig(executor_class="multiproc", model=MODEL)
    with DiffusionEngine(config, plugins=plugins) as engine:
        os.kill(pids(engine)[0], signal.SIGKILL)
        wait_until(lambda: len(heard) == 3, timeout=BOUND_S)
        assert heard[0].result(BOUND_S) == [7]  # type: ignore[union-attr]
        assert all("cannot wait here" in str(error) for error in heard[1:])
