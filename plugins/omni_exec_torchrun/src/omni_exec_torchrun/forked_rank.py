"""Runs a rank that is forked from its agent. The agent has imported torch, so that ranks start at once."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import traceback

from omni_core.forking.child import begin_child

# All file descriptors of the agent from this number on are closed in a rank.
_FIRST_FOREIGN_FD = 3


def run_rank(module: str, *arguments: str) -> None:
    """Run a module as `python -m` does, in a forked process. Does not return: it ends the process.

    Args:
        module: Name of the module.
        arguments: Its command-line arguments.
    """
    begin_child()
    os.setsid()  # a new process group, with the processes that it starts
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
