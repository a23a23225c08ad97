"""The process that runs torch elastic's agent: a new interpreter, or forked by a fork server."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from omni_core.forking.client import ForkClient
from omni_core.forking.messages import ChildCall
from omni_core.forking.starter import Started
from omni_core.log import get_logger
from omni_core.wire.reactor import Reactor
from omni_core.wire.start import start_python
from omni_exec_torchrun.launch_settings import LaunchSettings

log = get_logger(__name__)

RUN_AGENT = "omni_exec_torchrun.elastic:main"
RUN_FORKED_AGENT = "omni_exec_torchrun.elastic:run_forked"


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

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it is there."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def wait_and_close(self, seconds: float) -> None:
        """Close both pipes, and wait for the end of the process, which was killed."""
        self.close_files()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def close_files(self) -> None:
        """Close both pipes. The process ends, if it has not."""
        for fd in (self.lifeline, self.events):
            if fd >= 0:
                os.close(fd)
        self.lifeline = self.events = -1


class ForkedAgent:
    """An agent that a fork server has started, which has imported torch: it is there at once.

    Everything happens in the reactor's thread.

    Args:
        reactor: Where the server's answers are waited for.
        connection: To the server; becomes this object's.
        settings: What the agent is told.
        output: File descriptor for what it and its ranks print.
        on_ended: Called when it has ended, or could not be started: `poll` tells how.

    Attributes:
        pid: Its process id, once it is there.
        lifeline: As of `AgentProcess`.
        events: As of `AgentProcess`.

    Raises:
        OSError: The server cannot be asked.
    """

    def __init__(
        self,
        reactor: Reactor,
        connection: socket.socket,
        settings: LaunchSettings,
        output: int,
        *,
        on_ended: Callable[[], None],
    ) -> None:
        self.pid: int | None = None
        self.lifeline = self.events = -1
        self._pidfd: int | None = None
        self._reactor = reactor
        self._on_ended = on_ended
        self._status: int | None = None
        self._is_given_up = False
        self._is_starting = True
        self._refusal: OSError | None = None
        call = ChildCall(RUN_FORKED_AGENT, (settings.to_json(),))
        self._client = ForkClient(reactor, call, settings.model, lambda _, status: self._note(status), connection)
        with contextlib.ExitStack() as stack:
            stack.callback(self.close_files)
            with contextlib.ExitStack() as theirs:
                lifeline_read, self.lifeline = os.pipe()
                theirs.callback(os.close, lifeline_read)
                self.events, events_write = os.pipe()
                theirs.callback(os.close, events_write)
                os.set_blocking(self.events, False)
                self._client.start([lifeline_read, events_write], output, self._started)
            if self._refusal is not None:
                raise self._refusal
            stack.pop_all()
        self._is_starting = False

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs, or is being started."""
        return self._status

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process. One that is not there yet is given up, and `on_ended` is called soon."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
        elif not self._is_given_up:
            self._is_given_up = True
            self._client.close()  # the server kills what it forks for somebody who is gone
            self._reactor.call_soon(lambda: self._note(-number))

    def wait_and_close(self, seconds: float) -> None:
        """Wait for the end of the process, which was killed, and close everything."""
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll(seconds * 1e3)
        self.close_files()

    def close_files(self) -> None:
        """Close both pipes and the connection to the server, which ends the process if it has not."""
        for fd in (self.lifeline, self.events, *([] if self._pidfd is None else [self._pidfd])):
            if fd >= 0:
                os.close(fd)
        self.lifeline = self.events = -1
        self._pidfd = None
        self._client.close()

    def _started(self, started: Started | OSError) -> None:
        if isinstance(started, Started):
            self.pid, self._pidfd = started.pid, started.pidfd
        elif self._is_starting:  # nobody can be told yet: it is raised
            self._refusal = started
        else:
            log.error("a launcher could not be forked", reason=str(started))
            self._note(1)

    def _note(self, status: int) -> None:
        self._status = status
        self._on_ended()


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
