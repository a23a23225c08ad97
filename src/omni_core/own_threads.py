"""Threads of omni's own that call what users wrote (observers, callbacks), and that nothing may hold up there.

Whoever waits in one of them for a request or a worker waits for that very thread, so it would be for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

from omni_core.errors import EngineError


class _Thread(threading.local):
    does: str | None = None
    owner: object = None


_thread = _Thread()


def is_own_thread(owners: Collection[object]) -> bool:
    """Whether the running thread is one of these owners."""
    return _thread.does is not None and any(_thread.owner is owner for owner in owners)


def begin_own_thread(does: str, owner: object) -> None:
    """Say, at the start of a thread, that it must not wait for what needs it.

    Args:
        does: What it does, to be read after "the thread that": `"runs the engine"`.
        owner: Whose thread it is. Whoever belongs to another may wait there, as for a second engine.
    """
    _thread.does, _thread.owner = does, owner


def refuse_to_wait(what: str, owners: Collection[object], instead: str = "Call it in a thread of your own") -> None:
    """Return if the running thread may wait.

    Args:
        what: What was called.
        owners: Whose threads what was called needs.
        instead: What to do instead, as a sentence without its full stop.

    Raises:
        EngineError: It is one of theirs.
    """
    if is_own_thread(owners):
        raise EngineError(
            f"{what} waits, but was called in the thread that {_thread.does} (in an observer or a callback), which "
            f"it would wait for. {instead}."
        )
