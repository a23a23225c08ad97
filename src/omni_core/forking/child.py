"""What a new process does first: one that was just forked, to be as one that was started anew, and one that was."""

from __future__ import annotations

import gc
import random
import signal
import sys

from omni_core.forking.messages import ChildCall
from omni_core.wire.process_end import die_with_parent


def run_spawned(parent: int, call: str, *files: int) -> None:
    """Make a call in a new interpreter, which ends with the process that has started it.

    Args:
        parent: Process id of that.
        call: A `ChildCall` as JSON.
        files: Files that it was given.
    """
    die_with_parent(parent)
    ChildCall.from_json(call.encode()).make(files)


def begin_child() -> None:
    """Take signals as usual, draw random numbers of one's own, and let everything be collected again.

    Torch's generator is left: it begins with the same seed in every new process.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # Children of one parent would all draw the same.
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    gc.unfreeze()
