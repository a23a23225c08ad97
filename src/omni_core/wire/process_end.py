"""How processes end: with their parent, and what their exit status means."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
# Seconds within which the kernel ends a process that was killed.
_REAP_S = 5.0


def die_with_parent(parent: int, with_signal: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this process when the thread that started it ends (Linux; elsewhere, nothing).

    Args:
        parent: Process id of the parent.
        with_signal: What the kernel sends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, with_signal)
        if os.getppid() != parent:  # it ended before the kernel knew
            os._exit(1)


def end_process(process: subprocess.Popen[bytes], grace_s: float = 2.0) -> int:
    """Wait for the end of a process that was told to, and kill it if it takes too long.

    Args:
        process: The process, a child of this one.
        grace_s: How long it may take by itself.

    Returns:
        Its exit code; negative for a signal.
    """
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:  # it is still importing
        process.kill()
    try:
        return process.wait(_REAP_S)
    except subprocess.TimeoutExpired:  # stuck in the kernel: it ends when it leaves that
        return -signal.SIGKILL


def describe_exit(status: int) -> str:
    """Say how a process ended.

    Args:
        status: An exit code; the negative number of the signal that killed it.
    """
    if status >= 0:
        return f"exited with code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of memory, perhaps, or somebody's kill -9)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
