"""Waiting with a bound, so that an executor that hangs fails a test instead of stopping the suite."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

import pytest

from omni_core import DiffusionEngine
from omni_core.errors import OmniError

T = TypeVar("T")


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> float:
    """Wait for a condition; return the seconds it took.

    Raises:
        AssertionError: It did not come true in time.
    """
    begun, tick = time.monotonic(), threading.Event()
    while not condition():
        if time.monotonic() - begun > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        tick.wait(0.005)
    return time.monotonic() - begun


def bounded(function: Callable[[], T], what: str, seconds: float) -> T:
    """Call a function in a thread of its own and return its result.

    Raises:
        AssertionError: It did not return in time. It is left behind, in a daemon thread.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="conformance-bounded", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise AssertionError(f"{what} did not return within {seconds:g} s. It stands here:\n{_stack_of(thread)}")
    if errors:
        raise errors[0]
    return results[0]


def in_threads(functions: list[Callable[[], T]], seconds: float = 60.0) -> list[T]:
    """Call functions at the same time, each in a thread; return their results in order, or raise the first error."""
    barrier = threading.Barrier(len(functions))
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(number: int, function: Callable[[], T]) -> None:
        try:
            barrier.wait(seconds)
            results[number] = function()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=entry, name="conformance-caller", daemon=True)
        for entry in enumerate(functions)
    ]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    late = [thread for thread in threads if thread.is_alive()]
    assert not late, f"{len(late)} of {len(threads)} threads hang after {seconds:g} s, one of them here:\n" + _stack_of(
        late[0]
    )
    return [results[number] for number in range(len(functions))]


def is_healthy(engine: DiffusionEngine) -> bool:
    """Return whether an engine says that it can serve."""
    try:
        engine.check_health()
    except OmniError:
        return False
    return True


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Fail what runs in the main thread once `seconds` have passed. A timer that is due earlier stays in charge."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def bark(number: int, frame: FrameType | None) -> None:
        stacks = "\n".join(_stack_of(thread) for thread in threading.enumerate() if thread.name.startswith("omni-"))
        pytest.fail(f"The test did not end within {seconds:g} s. Threads of the engine:\n{stacks}")

    begun = time.monotonic()
    other_seconds, other_interval = signal.getitimer(signal.ITIMER_REAL)
    if 0 < other_seconds < seconds:
        yield
        return
    other_handler = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, other_handler)
        if other_seconds:
            left = max(0.001, other_seconds - (time.monotonic() - begun))
            signal.setitimer(signal.ITIMER_REAL, left, other_interval)


def _stack_of(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return f"{thread.name}:\n" + ("".join(traceback.format_stack(frame)[-6:]) if frame is not None else "(ended)")
