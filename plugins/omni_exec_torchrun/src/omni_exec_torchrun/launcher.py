"""The driver's side of the launcher process: starts it, reads its events, and ends it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from omni_core.replicas.timers import Timer
from omni_core.wire.reactor import Reactor
from omni_exec_torchrun.agent_events import EventReader
from omni_exec_torchrun.agent_process import AgentProcess, ForkedAgent, start_agent
from omni_exec_torchrun.launch_settings import LaunchSettings

# Seconds that the launcher may take to exit after the grace time of its ranks.
_STOP_MARGIN_S = 2.0
_REAP_S = 5.0
_POLL_S = 0.05


class Launcher:
    """The process in which torch elastic's agent starts and restarts ranks.

    It is used in the reactor's thread only. Only `close` blocks. The process ends with this process; on Linux a new
    interpreter also ends with the reactor's thread, and a forked one with the connection to the fork server.

    Args:
        reactor: The reactor that watches the process.
        settings: The settings of the launcher.
        output: File descriptor for the output of the launcher and its ranks; the caller closes it.
        on_ended: Called once, with the exit code (negative for a signal), after the last event.
        on_event: Called with each event; see `agent_events.py`.
        fork_server: A connection to a fork server that has imported torch; this object owns it. None: start a new
            interpreter.

    Raises:
        OSError: The process cannot be started, or the fork server cannot be reached.
    """

    def __init__(
        self,
        reactor: Reactor,
        settings: LaunchSettings,
        output: int,
        on_ended: Callable[[int], None],
        on_event: Callable[[dict[str, Any]], None] = lambda event: None,
        *,
        fork_server: socket.socket | None = None,
    ) -> None:
        self._reactor = reactor
        self._on_ended = on_ended
        self._on_event = on_event
        self._stop_s = settings.stop_grace_s + _STOP_MARGIN_S
        self._timer: Timer | None = None
        self._has_ended = False
        # Without a pidfd, the end of the event pipe shows the exit. A fork server reports it.
        self._pidfd: int | None = None
        self._agent: AgentProcess | ForkedAgent
        if fork_server is not None:
            self._agent = ForkedAgent(reactor, fork_server, settings, output, on_ended=self._check)
        else:
            self._agent = start_agent(settings, output)
            self._pidfd = os.pidfd_open(self._agent.pid) if hasattr(os, "pidfd_open") else None
        self._reader = EventReader(self._agent.events)
        reactor.watch(self._agent.events, self._read_events)
        if self._pidfd is not None:
            reactor.watch(self._pidfd, self._check)

    @property
    def pid(self) -> int | None:
        """Process id of the launcher; None until the fork server has forked it."""
        return self._agent.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process has exited and `on_ended` was called."""
        return self._has_ended

    def stop(self) -> None:
        """Ask the launcher to end with its ranks. It is killed if it takes too long. `on_ended` follows."""
        if self._has_ended:
            return
        self._signal(signal.SIGTERM)
        if self._timer is None:
            self._timer = self._reactor.call_later(self._stop_s, self.kill)

    def kill(self) -> None:
        """Kill the launcher and its ranks. `on_ended` follows."""
        if not self._has_ended:
            self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill the launcher, if it runs, and release everything. `on_ended` is not called any more."""
        if self._agent.events < 0:
            return
        self.kill()
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._unwatch()
        self._agent.wait_and_close(_REAP_S)

    def _signal(self, number: signal.Signals) -> None:
        self._agent.send_signal(number)

    def _read_events(self) -> None:
        for event in self._reader.read():
            self._on_event(event)
        if self._reader.has_ended:
            self._reactor.unwatch(self._agent.events)
            if self._pidfd is None:
                self._check()

    def _check(self) -> None:
        if self._has_ended:
            return
        status = self._agent.poll()
        if status is None:  # it has closed its files and will exit soon
            self._reactor.call_later(_POLL_S, self._check)
            return
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()
        for event in self._reader.read():
            self._on_event(event)
        self._unwatch()
        self._agent.close_files()
        self._on_ended(status)

    def _unwatch(self) -> None:
        if self._agent.events >= 0:
            self._reactor.unwatch(self._agent.events)
        if self._pidfd is not None:
            self._reactor.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
