"""Threads of omni's own that call what users wrote (observers, callbacks), and that nothing may hold up there.

A wait for a request or a worker in one of them waits for the thread itself, and would never end.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

from omni_core.errors import EngineError


class _Thread(threading.local):
    does: str | None = None
    owner: object = None
    runs_requests: bool = False


_thread = _Thread()


def is_own_thread(owners: Collection[object]) -> bool:
    """Whether the running thread is one of these owners, and does more than to run requests."""
    return _belongs_to(owners) and not _thread.runs_requests


def begin_own_thread(does: str, owner: object, *, runs_requests: bool = False) -> None:
    """Say, at the start of a thread, that it must not wait for what needs it.

    Args:
        does: What it does, to be read after "the thread that": `"runs the engine"`.
        owner: Whose thread it is. A caller that belongs to another may wait there, as for a second engine.
        runs_requests: Whether only requests need it. What else is called there is done at once.
    """
    _thread.does, _thread.owner, _thread.runs_requests = does, owner, runs_requests


def refuse_to_wait(
    what: str,
    owners: Collection[object],
    instead: str = "Call it in a thread of your own",
    *,
    for_request: bool = False,
) -> None:
    """Return if the running thread may wait.

    Args:
        what: What was called.
        owners: Whose threads what was called needs.
        instead: What to do instead, as a sentence without its full stop.
        for_request: Whether it waits for a request.

    Raises:
        EngineError: It is one of theirs.
    """
    if _belongs_to(owners) and (for_request or not _thread.runs_requests):
        raise EngineError(
            f"{what} waits, but was called in the thread that {_thread.does} (in an observer or a callback), which "
            f"it would wait for. {instead}."
        )


def _belongs_to(owners: Collection[object]) -> bool:
    return _thread.does is not None and any(_thread.owner is owner for owner in owners)
