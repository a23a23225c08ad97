"""The end of processes: with their parent, by a signal, and the meaning of their exit status."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
# Seconds to wait for the exit of a killed process.
_REAP_S = 5.0


def die_with_parent(parent: int, with_signal: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this process when the thread that started it ends (Linux; elsewhere, nothing).

    Args:
        parent: Process id of the parent.
        with_signal: The signal that the kernel sends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, with_signal)
        if os.getppid() != parent:  # the parent ended before the call
            os._exit(1)


def end_process(process: subprocess.Popen[bytes], grace_s: float = 2.0) -> int:
    """Wait for the exit of a process that was told to end, and kill it if it takes too long.

    Args:
        process: The process, a child of this one.
        grace_s: Seconds until it is killed.

    Returns:
        Its exit code; negative for a signal.
    """
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:  # it is still importing
        process.kill()
    try:
        return process.wait(_REAP_S)
    except subprocess.TimeoutExpired:  # stuck in a system call: it ends after that
        return -signal.SIGKILL


def describe_exit(status: int) -> str:
    """Return a text that says how a process ended.

    Args:
        status: The exit code; negative for the signal that killed it.
    """
    if status >= 0:
        return f"exited with code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of memory, perhaps, or somebody's kill -9)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
