"""A rank that is forked from its agent, which has imported what it needs: it is there at once, at every restart."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import traceback

# Beyond standard input, output and error nothing of the agent's is the rank's business.
_FIRST_FOREIGN_FD = 3


def can_fork() -> bool:
    """Whether an agent may fork its ranks: on Linux, where it computes nothing and has no accelerator initialised."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


def run_rank(module: str, *arguments: str) -> None:
    """Run a module as `python -m` does, in a process that was just forked. Does not return: it ends the process.

    Args:
        module: Name of the module.
        arguments: Of its command line.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()  # a group of its own, with whatever it starts
    os.closerange(_FIRST_FOREIGN_FD, os.sysconf("SC_OPEN_MAX"))
    sys.argv[1:] = arguments
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
