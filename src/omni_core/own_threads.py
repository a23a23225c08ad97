"""Threads of omni's own that call what users wrote (observers, callbacks), and that nothing may hold up there.

Whoever waits in one of them for a request or a worker waits for that very thread, so it would be for ever.
"""

from __future__ import annotations

import threading

from omni_core.errors import EngineError


class _Thread(threading.local):
    does: str | None = None


_thread = _Thread()


def is_own_thread() -> bool:
    """Whether the running thread is one that must not wait."""
    return _thread.does is not None


def begin_own_thread(does: str) -> None:
    """Say, at the start of a thread, that it must not wait.

    Args:
        does: What it does, to be read after "the thread that": `"runs the engine"`.
    """
    _thread.does = does


def refuse_to_wait(what: str, instead: str = "Call it in a thread of your own") -> None:
    """Return if the running thread may wait.

    Args:
        what: What was called.
        instead: What to do instead, as a sentence without its full stop.

    Raises:
        EngineError: It is one of omni's own.
    """
    if _thread.does is not None:
        raise EngineError(
            f"{what} waits, but was called in the thread that {_thread.does} (in an observer or a callback), which "
            f"it would wait for. {instead}."
        )
