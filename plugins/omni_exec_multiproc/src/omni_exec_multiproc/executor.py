"""`executor_class = "multiproc"`: worker processes on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from omni_core.remote.executor import RemoteExecutor, worker_config
from omni_core.remote.output import WorkerOutput
from omni_core.remote.reactor import Reactor
from omni_core.remote.replica import ReplicaEvents
from omni_exec_multiproc.options import MultiprocOptions
from omni_exec_multiproc.replica import ProcessReplica
from omni_exec_multiproc.starter import ForkServer, Spawner, Starter, has_fork_server


class MultiprocExecutor(RemoteExecutor):
    """Runs `data_parallel_size` replicas of `cfg_parallel_size` worker processes each.

    A worker that ends, hangs or raises in a step is replaced with its replica; the engine runs its requests again.
    """

    def _init_executor(self) -> None:
        self._options: MultiprocOptions = self.options or MultiprocOptions()  # none if it was given as a class
        self._process_replicas: list[ProcessReplica] = []
        self._server_output: WorkerOutput | None = None
        self._starter: Starter | None = None
        super()._init_executor()

    def make_replicas(self, reactor: Reactor, events: ReplicaEvents) -> Sequence[ProcessReplica]:
        """Return the replicas, not started yet."""
        starter = self._starter = self._make_starter(reactor)
        config = worker_config(self.config, "multiproc", self.config.data_parallel_size * self.config.ranks_per_replica)
        self._process_replicas = [
            ProcessReplica(reactor, starter, config, self._options, events, index=index, hooks=self.plugins)
            for index in range(self.config.data_parallel_size)
        ]
        return self._process_replicas

    def release(self) -> None:
        """Let go of what has started the workers."""
        if self._starter is not None:
            self._starter.close()
        if self._server_output is not None:
            self._server_output.close()

    def _make_starter(self, reactor: Reactor) -> Starter:
        method = self._options.start_method
        if method == "spawn" or (method == "auto" and not has_fork_server()):
            return Spawner(self._process_ended)
        self._server_output = WorkerOutput(reactor, {"process": "fork server"})
        try:
            return ForkServer(reactor, self.config.model, self._server_output.write_fd, self._process_ended)
        finally:
            self._server_output.close_write_end()

    def _process_ended(self, pid: int, exit_code: int) -> None:
        for replica in self._process_replicas:
            replica.note_exit(pid, exit_code)
        self._changed()
