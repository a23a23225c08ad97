"""Starting the process that runs torch elastic's agent, and reading what it reports."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from omni_exec_torchrun.launch_settings import LaunchSettings

SETTINGS_VARIABLE = "OMNI_TORCHRUN_SETTINGS"
EVENTS_VARIABLE = "OMNI_TORCHRUN_EVENTS_FD"
STARTER_VARIABLE = "OMNI_TORCHRUN_STARTER_PID"

_LONGEST_LINE = 1 << 20


@dataclass(slots=True)
class AgentProcess:
    """A process that was started.

    Attributes:
        process: The process.
        lifeline: End of a pipe that is never written to: the process and its ranks end when it is closed.
        events: Pipe on which the process reports what happens; not blocking.
    """

    process: subprocess.Popen[bytes]
    lifeline: int
    events: int

    def close_files(self) -> None:
        """Close both pipes. The process ends, if it has not."""
        for fd in (self.lifeline, self.events):
            if fd >= 0:
                os.close(fd)
        self.lifeline = self.events = -1


def start_agent(settings: LaunchSettings, output: int | None) -> AgentProcess:
    """Start `python -m omni_exec_torchrun.elastic` in a session of its own: Ctrl-C in a terminal is not meant for it.

    Must be called in a thread that lives as long as the process shall: on Linux the kernel ends it with the thread.

    Args:
        settings: What it is told.
        output: File descriptor for what it and its ranks print; None is this process's own.

    Raises:
        OSError: The process cannot be started.
    """
    lifeline_read, lifeline_write = os.pipe()
    events_read, events_write = os.pipe()
    # Not on the command line: others see that, and the settings may hold anything. Modules are found where this process
    # finds them, and not in whatever folder it runs in (from Python 3.11 on).
    environment = {
        **os.environ,
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path),  # noqa: PTH100  # "" is the cwd
        **settings.environment,
        SETTINGS_VARIABLE: settings.to_json(),
        EVENTS_VARIABLE: str(events_write),
        STARTER_VARIABLE: str(os.getpid()),
    }
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    try:
        process = subprocess.Popen(  # noqa: S603  # our own interpreter with our own code
            [sys.executable, *flags, "-m", "omni_exec_torchrun.elastic"],
            stdin=lifeline_read,
            stdout=output,
            stderr=output,
            pass_fds=[events_write],
            env=environment,
            start_new_session=True,
        )
    except BaseException:
        os.close(lifeline_write)
        os.close(events_read)
        raise
    finally:
        os.close(lifeline_read)
        os.close(events_write)
    os.set_blocking(events_read, False)
    return AgentProcess(process, lifeline_write, events_read)


class EventReader:
    """Takes events off a pipe that does not block.

    Args:
        fd: The pipe; stays the caller's to close.

    Attributes:
        has_ended: Whether the other side has closed it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self.has_ended = False

    def read(self) -> list[dict[str, Any]]:
        """Return the events that are there. A line that is none is left out."""
        events: list[dict[str, Any]] = []
        while not self.has_ended:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                break
            if not data:
                self.has_ended = True
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > _LONGEST_LINE:
                self._rest = b""
            for line in lines:
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        events.append(event)
        return events
