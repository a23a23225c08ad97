"""Timeouts as callers give them."""

from __future__ import annotations

import decimal
import fractions
import math
import multiprocessing.connection
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_core.errors import ValidationError
from omni_core.timeouts import MOST_SECONDS, Deadline, is_done_within, wait_seconds


@pytest.mark.parametrize(
    ("given_", "seconds"),
    [
        (None, None),
        (math.inf, None),
        (np.float32("inf"), None),
        (0, 0.0),
        (-0.0, 0.0),
        (-3, 0.0),
        (-math.inf, 0.0),
        (1.5, 1.5),
        (np.float32(1.5), 1.5),
        (np.int64(2), 2.0),
        (np.array(2.5), 2.5),
        (decimal.Decimal("0.25"), 0.25),
        (fractions.Fraction(1, 4), 0.25),
        (1e10, MOST_SECONDS),
        (1e300, MOST_SECONDS),
        (10**400, MOST_SECONDS),
        (-(10**400), 0.0),
    ],
)
def test_a_number_becomes_what_a_wait_takes(given_: Any, seconds: float | None) -> None:
    assert wait_seconds(given_) == seconds
    left = Deadline(given_).left()
    assert left == seconds if seconds in (None, 0.0) else seconds - 1 < left <= seconds


@pytest.mark.parametrize(
    "wrong", [math.nan, np.float64("nan"), decimal.Decimal("NaN"), "3", b"3", True, [3], np.ones(3), 1j, object()]
)
def test_what_is_no_number_of_seconds_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="patience = "):
        wait_seconds(wrong, "patience")
    with pytest.raises(ValueError, match="seconds"):
        Deadline(wrong)


@given(st.one_of(st.floats(allow_nan=False), st.integers()))
def test_every_number_is_within_bounds(number: float) -> None:
    seconds = wait_seconds(number)
    assert seconds is None or 0.0 <= seconds <= MOST_SECONDS


def test_the_longest_is_taken_by_every_kind_of_wait() -> None:
    longest = wait_seconds(1e300)
    event = threading.Event()
    event.set()
    assert event.wait(longest)
    messages: queue.SimpleQueue[int] = queue.SimpleQueue()
    messages.put(1)
    assert messages.get(timeout=longest) == 1
    done: Future[int] = Future()
    done.set_result(2)
    assert done.result(longest) == 2
    with pytest.raises(FutureTimeoutError):
        Future[int]().result(wait_seconds(-1))
    ours, theirs = multiprocessing.Pipe()
    theirs.send(3)
    assert multiprocessing.connection.wait([ours], longest) == [ours]
    ours.close()
    theirs.close()


def test_a_wait_for_a_future_is_not_ended_by_what_it_holds() -> None:
    with ThreadPoolExecutor(1) as pool:
        release = threading.Event()
        busy = pool.submit(release.wait)
        waiting = pool.submit(int)
        assert not is_done_within(busy, 0.01)
        waiting.cancel()
        assert is_done_within(waiting, 0.01)
        release.set()
        assert is_done_within(busy, None)
    for error in (TimeoutError(), FutureTimeoutError(), SystemExit()):
        failed: Future[None] = Future()
        failed.set_exception(error)
        assert is_done_within(failed, 0.0)


def test_a_future_that_ends_as_the_time_does_is_done() -> None:
    class Late(Future[None]):
        def exception(self, timeout: float | None = None) -> BaseException | None:
            self.set_result(None)
            raise FutureTimeoutError

    assert is_done_within(Late(), 0.0)
