"""`executor_class = "multiproc"`: worker processes on this machine."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from omni_core.errors import StartupError
from omni_core.forking.client import ForkClient
from omni_core.forking.starter import Spawner, Starter, can_fork
from omni_core.forking.warm import SharedServer, current
from omni_core.log import get_logger
from omni_core.replicas.executor import worker_config
from omni_core.replicas.replica import ReplicaEvents
from omni_core.wire.executor import WireExecutor
from omni_core.wire.reactor import Reactor
from omni_exec_multiproc.options import MultiprocOptions
from omni_exec_multiproc.replica import ProcessReplica

log = get_logger(__name__)

RUN_FORKED = "omni_exec_multiproc.worker_process:run_connected"
RUN_SPAWNED = "omni_exec_multiproc.worker_process:run_spawned"


class MultiprocExecutor(WireExecutor):
    """Runs `data_parallel_size` replicas of `ranks_per_replica` worker processes each.

    A worker that ends, hangs or raises in a step is replaced with its replica; the engine runs its requests again.
    """

    def _init_executor(self) -> None:
        self._options: MultiprocOptions = self.options or MultiprocOptions()  # none if it was given as a class
        self._process_replicas: list[ProcessReplica] = []
        self._starter: Starter | None = None
        super()._init_executor()

    def make_replicas(self, loop: Reactor, events: ReplicaEvents) -> Sequence[ProcessReplica]:
        """Return the replicas, not started yet."""
        starter = self._starter = self._make_starter(loop)
        config = worker_config(self.config, "multiproc")
        self._process_replicas = [
            ProcessReplica(loop, starter, config, self._options, events, index=index, hooks=self.plugins)
            for index in range(self.config.data_parallel_size)
        ]
        return self._process_replicas

    def release(self) -> None:
        """Let go of what has started the workers."""
        if self._starter is not None:
            self._starter.close()

    def _make_starter(self, reactor: Reactor) -> Starter:
        method = self._options.start_method
        if method == "spawn" or (method == "auto" and not can_fork()):
            return Spawner(RUN_SPAWNED, self._process_ended)
        return ForkClient(reactor, RUN_FORKED, self.config.model, self._process_ended, self._connect_shared())

    def _connect_shared(self) -> socket.socket | None:
        """Return a connection to the fork server to share with other engines, if there is one that will do."""
        folder = self._options.fork_server
        server = SharedServer(folder) if folder is not None else None
        if server is None and self._options.start_method == "auto":
            server = current()
        if server is None:
            return None
        try:
            different = server.differences()
            if not different:
                return server.connect()
        except (OSError, ValueError) as error:
            problem = f"There is no fork server to share in {server.folder}: {error}"
        else:
            problem = (
                f"The fork server in {server.folder} has not what its libraries would see here when they are imported: "
                f"different is {', '.join(different)}"
            )
        if folder is not None:
            raise StartupError(f"{problem}. Leave executor_options['fork_server'] out for a server of its own.")
        log.warning("an engine starts a fork server of its own", reason=problem)
        return None

    def _process_ended(self, pid: int, exit_code: int) -> None:
        for replica in self._process_replicas:
            replica.note_exit(pid, exit_code)
        self._changed()
