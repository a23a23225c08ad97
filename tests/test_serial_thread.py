from __future__ import annotations

import contextlib
import gc
import os
import threading
import weakref
from concurrent.futures import CancelledError
from typing import Any

import pytest

from omni_core.serial_thread import SerialThread, ThreadClosedError

BOUND_S = 10.0


def test_calls_run_in_order_and_in_one_thread() -> None:
    thread = SerialThread("omni-test")
    seen: list[tuple[int, str]] = []
    futures = [thread.submit(lambda i=i: seen.append((i, threading.current_thread().name))) for i in range(100)]
    for future in futures:
        future.result(10)
    assert seen == [(i, "omni-test") for i in range(100)]
    assert thread.submit(lambda: 1 // 1).result(10) == 1
    with pytest.raises(ZeroDivisionError):
        thread.submit(lambda: 1 // 0).result(10)
    assert thread.close(10)


def test_a_call_from_within_runs_at_once() -> None:
    thread = SerialThread("omni-test")
    assert thread.submit(lambda: thread.submit(lambda: (thread.is_current, 3)).result(0)).result(10) == (True, 3)
    assert thread.close(10)


def test_closing_waits_cancels_and_does_the_last_thing() -> None:
    thread = SerialThread("omni-test")
    begun, release, last = threading.Event(), threading.Event(), threading.Event()

    def block() -> bool:
        begun.set()
        return release.wait(20)

    running = thread.submit(block)
    waiting = thread.submit(lambda: 3)
    assert begun.wait(10)
    assert not thread.close(timeout=0.01, last=last.set)
    assert not thread.is_alive
    with pytest.raises(RuntimeError, match="closed"):
        thread.submit(lambda: 3)
    assert waiting.cancelled(), "who waits for it would wait for a call that may never end"
    with pytest.raises(ThreadClosedError, match="had not ended"):
        running.result(0)
    release.set()
    assert thread.close(10)
    assert isinstance(running.exception(0), ThreadClosedError), "a late result is dropped"
    assert last.is_set()


@pytest.mark.parametrize("raises", [False, True])
def test_a_call_that_ends_while_it_is_closed_is_not_given_up(raises: bool) -> None:
    thread = SerialThread("omni-test")
    begun, release = threading.Event(), threading.Event()

    def block() -> int:
        begun.set()
        release.wait(20)
        return 1 // (0 if raises else 1)

    running = thread.submit(block)
    assert begun.wait(10)
    threading.Timer(0.0, release.set).start()
    assert thread.close(10)
    assert isinstance(running.exception(0), ZeroDivisionError) if raises else running.result(0) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_a_thread_that_it_has_not() -> None:
    thread = SerialThread("omni-test")
    child = os.fork()
    if child == 0:
        try:
            thread.submit(lambda: 3)
        except ThreadClosedError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert thread.close(10)


def test_an_idle_thread_ends_though_nobody_waits_for_it() -> None:
    for _ in range(200):  # it may see the end before, while or after it is closed
        thread = SerialThread("omni-test")
        thread.submit(lambda: 3).result(10)
        thread.close(timeout=0.0)
        assert thread.close(10)


def test_an_idle_thread_holds_nothing() -> None:
    class Thing:
        pass

    thread = SerialThread("omni-test")
    thing = Thing()
    held = weakref.ref(thing)
    future = thread.submit(lambda x: x, thing)
    future.result(10)
    thread.submit(lambda: None).result(10)
    del thing, future
    gc.collect()
    assert held() is None
    assert thread.close(10)


@pytest.mark.parametrize("call", ["close", "submit", "submit, then close"])
def test_a_signal_handler_may_call_in_the_middle_of_a_call(call: str) -> None:
    """It runs in the thread that it interrupts, and must not wait for that."""
    thread = SerialThread("interrupted")
    done: list[Any] = []

    class Interrupted:
        """The queue, in which the handler runs before the first thing is put."""

        def __init__(self, calls: Any) -> None:
            self.calls = calls
            self.handlers = [self.handle]

        def put(self, item: Any) -> None:
            while self.handlers:
                self.handlers.pop()()
            self.calls.put(item)

        def handle(self) -> None:
            if "submit" in call:
                done.append(thread.submit(lambda: 1).result(BOUND_S))
            if "close" in call:
                done.append(thread.close(BOUND_S))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.calls, name)

    thread._calls = Interrupted(thread._calls)  # type: ignore[assignment]

    def interrupted() -> None:
        future = thread.submit(lambda: 2)
        with contextlib.suppress(CancelledError):
            done.append(future.result(BOUND_S))

    caller = threading.Thread(target=interrupted, daemon=True)
    caller.start()
    caller.join(BOUND_S)
    assert not caller.is_alive()
    assert done == {"close": [True], "submit": [1, 2], "submit, then close": [1, True]}[call]
    assert thread.close(BOUND_S)
