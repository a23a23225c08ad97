"""`LaunchGroup`: one launcher, and the replicas whose ranks it starts."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omni_core.forking.starter import can_fork
from omni_core.forking.warm import connect_shared
from omni_core.log import get_logger
from omni_core.wire.arrival import Arrival
from omni_core.wire.output import WorkerOutput
from omni_core.wire.process_end import describe_exit
from omni_core.wire.reactor import Reactor
from omni_exec_torchrun.launch_settings import LaunchSettings
from omni_exec_torchrun.launcher import Launcher
from omni_exec_torchrun.replica import RankReplica

log = get_logger(__name__)


class LaunchGroup:
    """Runs one launcher, and passes its ranks to their replicas.

    It is used in the reactor's thread only.

    Args:
        reactor: The reactor that watches the launcher.
        settings: The settings of the launcher.
        on_ended: Called when the launcher has exited.
        fork_server: Folder of a fork server that forks the launcher. None: that of `warm_fork_server` in this process,
            if there is one.
    """

    def __init__(
        self,
        reactor: Reactor,
        settings: LaunchSettings,
        on_ended: Callable[[], None],
        fork_server: Path | None = None,
    ) -> None:
        self._fork_server = fork_server
        self.replicas: Sequence[RankReplica] = ()
        self._reactor = reactor
        self._settings = settings
        self._on_ended = on_ended
        self._launcher: Launcher | None = None
        self._output: WorkerOutput | None = None
        self._failure = ""
        self._is_closing = False
        self._has_been_started = False
        # Connected ranks whose replica is not starting yet, by rank.
        self._waiting: dict[int, Arrival] = {}

    @property
    def is_running(self) -> bool:
        """Whether the launcher runs."""
        return self._launcher is not None

    def last_output(self) -> str:
        """Return the last lines of output of the launcher and its ranks."""
        return "" if self._output is None else self._output.tail()

    def start(self) -> None:
        """Start the launcher, unless it runs.

        Raises:
            OSError: It cannot be started.
        """
        if self._launcher is not None or self._is_closing:
            return
        if self._output is not None:
            self._output.close()
        self._failure = ""
        self._output = WorkerOutput(self._reactor, {"process": "torchrun"})
        try:
            self._launcher = Launcher(
                self._reactor,
                self._settings,
                self._output.write_fd,
                self._launcher_ended,
                self._take_event,
                fork_server=self._connect_fork_server(),
            )
            self._has_been_started = True
        finally:
            self._output.close_write_end()

    def _connect_fork_server(self) -> socket.socket | None:
        if not can_fork():
            return None
        # If the server has ended since the first start, launchers are started without it.
        return connect_shared(self._fork_server, is_required=not self._has_been_started)

    def arrived(self, arrival: Arrival) -> None:
        """Pass a rank that has connected to its replica."""
        rank, size = arrival.hello.rank, self.replicas[0].world_size
        if self._is_closing or not 0 <= rank // size < len(self.replicas):
            if not self._is_closing:
                log.warning("a rank too many was sent away", rank=rank, ranks=len(self.replicas) * size)
            arrival.close()
            return
        replica = self.replicas[rank // size]
        if not replica.take(arrival):
            self._keep(arrival)

    def take_waiting(self, replica: RankReplica) -> None:
        """Pass the waiting ranks to their replica, which starts."""
        for rank, arrival in list(self._waiting.items()):
            if self.replicas[rank // replica.world_size] is replica:
                del self._waiting[rank]
                if not replica.take(arrival):
                    self._keep(arrival)

    def stop(self) -> None:
        """Stop restarts. The launcher ends after its ranks, which were asked to end."""
        self._is_closing = True
        for arrival in self._waiting.values():
            arrival.close()
        self._waiting.clear()

    def kill(self, *, at_once: bool) -> None:
        """End the launcher and its ranks.

        Args:
            at_once: Whether to use SIGKILL; else SIGTERM first.
        """
        if self._launcher is not None:
            if at_once:
                self._launcher.kill()
            else:
                self._launcher.stop()

    def close(self) -> None:
        """End the launcher, and release everything."""
        self.stop()
        if self._launcher is not None:
            self._launcher.close()
            self._launcher = None
        if self._output is not None:
            self._output.close()

    def _keep(self, arrival: Arrival) -> None:
        older = self._waiting.pop(arrival.hello.rank, None)
        if older is not None:
            older.close()
        self._waiting[arrival.hello.rank] = arrival

    def _take_event(self, event: dict[str, Any]) -> None:
        name = event.pop("event", None)
        if name == "worker_ended":
            for replica in self.replicas:
                replica.note_exit(event["pid"], event["exit_code"])
        elif name == "failed":
            self._failure = str(event.get("reason", ""))
            log.warning("the launcher has given up", reason=self._failure)
        else:
            log.info(f"launcher: {name}", **event)

    def _launcher_ended(self, exit_code: int) -> None:
        self._launcher = None
        for arrival in self._waiting.values():
            arrival.close()
        self._waiting.clear()
        if not self._is_closing:
            what = f"has no launcher any more, which {describe_exit(exit_code)}"
            if self._failure:
                what += f" ({self._failure})"
            for replica in self.replicas:
                replica.launcher_ended(what, self.last_output())
        self._on_ended()
