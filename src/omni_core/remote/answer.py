"""A call's answer for the thread that reads it itself."""

from __future__ import annotations

from typing import Any

from omni_core.errors import OmniError


class Answer:
    """What a call came to, for the thread that has made it and reads the reply itself: a future without its locks."""

    __slots__ = ("_is_done", "error", "value")

    def __init__(self) -> None:
        self._is_done = False
        self.value: Any = None
        self.error: OmniError | None = None

    def done(self) -> bool:
        """Whether the reply has come."""
        return self._is_done

    def result(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value

    def set_running_or_notify_cancel(self) -> bool:
        """Nobody can cancel it."""
        return True

    def set_result(self, value: Any) -> None:
        """Take the value."""
        self.value, self._is_done = value, True

    def set_exception(self, error: OmniError) -> None:
        """Take the error."""
        self.error, self._is_done = error, True
