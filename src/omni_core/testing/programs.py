"""Running programs that make engines, with a bound on the processes that they may come to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

# Seconds between two looks at how many processes there are.
_LOOK_S = 0.05


def run_program(
    command: Sequence[str],
    *,
    folder: Path,
    most_processes: int = 16,
    timeout_s: float = 120.0,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and kill it and all that it has started if those are too many, or it takes too long.

    Args:
        command: What to run.
        folder: Where.
        most_processes: How many processes there may be at a time, the program included.
        timeout_s: Most seconds.
        stdin: What it reads; None is nothing.
        environment: Variables beyond this process's own.

    Returns:
        How it ended and what it wrote.

    Raises:
        AssertionError: There were too many processes, or it did not end; the message has what it wrote.
    """
    with contextlib.ExitStack() as stack:
        # Files and no pipes: a process that is left over would hold a pipe open.
        out, err, said = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3))
        said.write(stdin or "")
        said.seek(0)
        process = subprocess.Popen(  # noqa: S603  # a test's own program
            command, cwd=folder, stdin=said, stdout=out, stderr=err, env={**os.environ, **(environment or {})}
        )
        problem = _watch(process, most_processes, time.monotonic() + timeout_s)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    assert problem is None, f"{problem}\n{texts[0]}\n{texts[1]}"
    return subprocess.CompletedProcess(command, process.returncode, *texts)


def _watch(process: subprocess.Popen[bytes], most: int, deadline: float) -> str | None:
    """Wait for the end; return what was wrong if it had to be killed."""
    tick = threading.Event()
    while process.poll() is None:
        family = _family(process.pid)
        if len(family) > most:
            _kill(family)
            process.wait(10.0)
            return f"there were more than {most} processes"
        if time.monotonic() > deadline:
            _kill(family)
            process.wait(10.0)
            return "the program did not end"
        tick.wait(_LOOK_S)
    return None


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        program = psutil.Process(pid)
        return [program, *program.children(recursive=True)]
    return []


def _kill(family: list[psutil.Process]) -> None:
    for process in family:  # none of them can start another one once it is stopped
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    for process in family:
        for one in _family(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
