"""A rank ends when the agent that started it does, and the agent when its driver does."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable

from omni_core.wire.process_end import die_with_parent

# Process id of the agent. Only our launcher sets it; then standard input is the lifeline.
AGENT_VARIABLE = "OMNI_TORCHRUN_AGENT_PID"


def end_with_agent() -> None:
    """Let this rank end with its agent, ours or torchrun's. Call it first, before slow imports, in the main thread."""
    agent = os.environ.get(AGENT_VARIABLE)
    parent = os.getppid()
    if agent is not None and parent != int(agent):
        os._exit(1)  # the agent has ended already
    die_with_parent(parent)
    # Not every kernel does this. Under plain torchrun standard input is not a lifeline.
    if sys.platform != "linux" and agent is not None:
        watch_lifeline(0, lambda: os._exit(1))


def watch_lifeline(fd: int, on_end: Callable[[], None]) -> None:
    """Call `on_end` in a new thread when the other end of a pipe is closed.

    Args:
        fd: The read end of a pipe that is never written to.
        on_end: The callback.
    """

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(fd, 4096):
                pass
        on_end()

    threading.Thread(target=wait, name="omni-lifeline", daemon=True).start()
