"""Starting the process that runs torch elastic's agent, and reading what it reports."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from typing import Any

from omni_core.wire.start import start_python
from omni_exec_torchrun.launch_settings import LaunchSettings

RUN_AGENT = "omni_exec_torchrun.elastic:main"

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
    """Start the process of `elastic.py` in a session of its own: Ctrl-C in a terminal is not meant for it.

    Must be called in a thread that lives as long as the process shall: on Linux the kernel ends it with the thread.

    Args:
        settings: What it is told.
        output: File descriptor for what it and its ranks print; None is this process's own.

    Raises:
        OSError: The process cannot be started.
    """
    lifeline_read, lifeline_write = os.pipe()
    events_read, events_write = os.pipe()
    try:
        process = start_python(
            RUN_AGENT,
            (settings.to_json(), events_write, os.getpid()),
            fds=(events_write,),
            stdin=lifeline_read,
            output=output,
            environment={**os.environ, **settings.environment},
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
