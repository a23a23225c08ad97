"""`executor_class = "multiproc"`: worker processes on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from omni_core.forking.client import ForkClient
from omni_core.forking.messages import ChildCall
from omni_core.forking.starter import Spawner, Starter, can_fork
from omni_core.forking.warm import connect_shared
from omni_core.replicas.executor import worker_config
from omni_core.replicas.replica import ReplicaEvents
from omni_core.wire.executor import WireExecutor
from omni_core.wire.reactor import Reactor
from omni_exec_multiproc.options import MultiprocOptions
from omni_exec_multiproc.replica import ProcessReplica

RUN_WORKER = ChildCall("omni_exec_multiproc.worker_process:run_connected")


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
        """Release the starter of the workers."""
        if self._starter is not None:
            self._starter.close()

    def _make_starter(self, reactor: Reactor) -> Starter:
        method, folder = self._options.start_method, self._options.fork_server
        if method == "spawn" or (method == "auto" and not can_fork()):
            return Spawner(RUN_WORKER, self._process_ended)
        shared = connect_shared(folder) if folder is not None or method == "auto" else None
        return ForkClient(reactor, RUN_WORKER, self.config.model, self._process_ended, shared)

    def _process_ended(self, pid: int, exit_code: int) -> None:
        for replica in self._process_replicas:
            replica.note_exit(pid, exit_code)
        self._changed()
