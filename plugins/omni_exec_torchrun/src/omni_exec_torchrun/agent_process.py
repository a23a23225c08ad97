"""Starts the process that runs torch elastic's agent: as a new interpreter, or forked by a fork server."""

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
    """An agent in a new interpreter.

    Attributes:
        process: The process.
        lifeline: Write end of a pipe that is never written to. When it is closed, the process and its ranks end.
        events: The pipe from which events are read; non-blocking.
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
        """Send a signal to the process, if it runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def wait_and_close(self, seconds: float) -> None:
        """Close both pipes, and wait for the exit of the killed process."""
        self.close_files()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def close_files(self) -> None:
        """Close both pipes, which ends the process."""
        for fd in (self.lifeline, self.events):
            if fd >= 0:
                os.close(fd)
        self.lifeline = self.events = -1


class ForkedAgent:
    """An agent that a fork server forks. The server has imported torch, so that the agent starts at once.

    It is used in the reactor's thread only.

    Args:
        reactor: The reactor that reads the server's replies.
        connection: The connection to the server; this object owns it.
        settings: The settings of the agent.
        output: File descriptor for the output of the agent and its ranks.
        on_ended: Called when the agent has exited or could not be started; `poll` returns the exit code.

    Attributes:
        pid: Process id of the agent; None until the server has forked it.
        lifeline: As in `AgentProcess`.
        events: As in `AgentProcess`.

    Raises:
        OSError: The server cannot be reached.
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
        """Return its exit code, negative for a signal; None while it runs or starts."""
        return self._status

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process. If it was not forked yet, its start is cancelled, and `on_ended` follows."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
        elif not self._is_given_up:
            self._is_given_up = True
            self._client.close()  # the server kills a process that it forks for a closed connection
            self._reactor.call_soon(lambda: self._note(-number))

    def wait_and_close(self, seconds: float) -> None:
        """Wait for the exit of the killed process, and close everything."""
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll(seconds * 1e3)
        self.close_files()

    def close_files(self) -> None:
        """Close both pipes and the connection to the server, which ends the process."""
        for fd in (self.lifeline, self.events, *([] if self._pidfd is None else [self._pidfd])):
            if fd >= 0:
                os.close(fd)
        self.lifeline = self.events = -1
        self._pidfd = None
        self._client.close()

    def _started(self, started: Started | OSError) -> None:
        if isinstance(started, Started):
            self.pid, self._pidfd = started.pid, started.pidfd
        elif self._is_starting:  # still in the constructor, which raises it
            self._refusal = started
        else:
            log.error("a launcher could not be forked", reason=str(started))
            self._note(1)

    def _note(self, status: int) -> None:
        self._status = status
        self._on_ended()


def start_agent(settings: LaunchSettings, output: int | None) -> AgentProcess:
    """Start the process of `elastic.py` in a new session, so that Ctrl-C in a terminal does not reach it.

    On Linux the kernel kills the process when the calling thread ends, so this thread must live as long.

    Args:
        settings: The settings of the agent.
        output: File descriptor for the output of the agent and its ranks; None is that of this process.

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
