"""Timeouts as callers give them, made into what every wait of Python and of the system takes."""

from __future__ import annotations

import math
import time
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # another one before Python 3.11
from typing import Any, SupportsFloat

from omni_core.errors import ValidationError

# Most seconds that one wait takes: poll(2) counts milliseconds in 32 bits. 23 days; who means longer gives None.
MOST_SECONDS = 2_000_000.0


def wait_seconds(timeout: SupportsFloat | None, what: str = "timeout") -> float | None:
    """Return a timeout as the number of seconds that a wait takes.

    Args:
        timeout: Seconds, as any kind of number. None and infinity: without a bound. Less than 0 is 0: do not wait.
        what: What to call it in the error.

    Returns:
        None, or seconds from 0 to `MOST_SECONDS`.

    Raises:
        ValidationError: It is no number of seconds.
    """
    if timeout is None:
        return None
    if isinstance(timeout, (bool, str, bytes)) or not isinstance(timeout, SupportsFloat):
        raise ValidationError(f"{what} = {timeout!r}: give a number of seconds, or None to wait until it ends.")
    try:
        seconds = float(timeout)
    except OverflowError:  # a whole number that no float holds
        return MOST_SECONDS if timeout > 0 else 0.0  # type: ignore[operator]
    except (TypeError, ValueError) as error:  # an array of several numbers
        raise ValidationError(f"{what} = {timeout!r}: give one number of seconds, or None.") from error
    if math.isnan(seconds):
        raise ValidationError(f"{what} = {timeout!r}: give a number of seconds, or None to wait until it ends.")
    return None if seconds == math.inf else min(max(seconds, 0.0), MOST_SECONDS)


def is_done_within(future: Future[Any], seconds: float | None) -> bool:
    """Wait for a future, and return whether it is done.

    Unlike `future.result(seconds)`, this does not take a TimeoutError that the future holds for the end of the wait.

    Args:
        future: What to wait for.
        seconds: How long at most; None: until it is done.
    """
    try:
        future.exception(seconds)
    except CancelledError:
        return True
    except FutureTimeoutError:
        return future.done()
    return True


class Deadline:
    """The moment up to which several waits may go on in all.

    Args:
        timeout: Seconds from now, as `wait_seconds` takes them.

    Raises:
        ValidationError: It is no number of seconds.
    """

    def __init__(self, timeout: SupportsFloat | None) -> None:
        self.seconds = wait_seconds(timeout)
        self._end = None if self.seconds is None else time.monotonic() + self.seconds

    def left(self) -> float | None:
        """Return the seconds that are left, at least 0; None if there is no bound."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())
