"""Standard streams that are closed, full, or read by nobody."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Any

import click

from omni_core.wire.start import occupy_standard_files


def open_missing() -> None:
    """Open the null device in place of standard streams that are closed, as they are in daemons.

    `sys.stderr` and the like are None there; afterwards they can be written to.
    """
    occupy_standard_files()
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def say(line: str) -> None:
    """Print a line on standard error. Where that cannot be written nobody hears it, and the work goes on."""
    try:
        click.echo(line, err=True)
    except OSError:  # the disk is full, or the reader is gone
        discard(sys.stderr)


def is_of_output(error: Exception) -> bool:
    """Return whether an error was raised when something was printed on standard output.

    What is printed on standard error goes through `say`, so that it is told by who raised it.
    """
    if not isinstance(error, OSError):
        return False
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return modules[-1].partition(".")[0] in ("click", "rich")


def let_go_of_errors() -> None:
    """Drop what standard error does not take; else the interpreter, at its end, puts an exit code of its own."""
    try:
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def discard(stream: Any) -> None:
    """Let what is and will be written to a stream vanish, so that the interpreter's last flush does not fail."""
    with contextlib.suppress(OSError):
        _null_device_at(stream.fileno())


def _null_device_at(number: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    os.dup2(opened, number)
    os.close(opened)
