"""Which task runs at the moment."""

from __future__ import annotations

from typing import Any

import greenlet


def running_task() -> Any:
    """Return the `PipelineTask` whose pipeline the caller runs in, or None outside of one, as in a thread of its own.

    What stands in for a part of a pipeline asks this when it is called, instead of holding the task: so a copy of it,
    however it was made, belongs to the request that uses it.
    """
    return getattr(greenlet.getcurrent(), "task", None)
