"""The worker processes of one replica."""

from __future__ import annotations

import secrets

from omni_core.config import OmniDiffusionConfig
from omni_core.forking.starter import Starter
from omni_core.hookspecs import Hooks
from omni_core.replicas.replica import ReplicaEvents
from omni_core.wire.reactor import Reactor
from omni_core.wire.replica import WireReplica
from omni_exec_multiproc.options import MultiprocOptions
from omni_exec_multiproc.worker import ProcessWorker
from omni_exec_multiproc.worker_process import MultiprocWorkerSetup


class ProcessReplica(WireReplica):
    """Starts one process of this machine for each rank.

    Args:
        reactor: The reactor that watches the workers.
        starter: Starts the processes.
        config: The configuration for the workers.
        options: The options of the executor.
        events: The callbacks to the executor.
        index: Index of the replica.
        hooks: Plugins to notify of deaths and restarts.
    """

    _options: MultiprocOptions

    def __init__(
        self,
        reactor: Reactor,
        starter: Starter,
        config: OmniDiffusionConfig,
        options: MultiprocOptions,
        events: ReplicaEvents,
        *,
        index: int,
        hooks: Hooks | None,
    ) -> None:
        super().__init__(reactor, config, options, events, index=index, hooks=hooks)
        self._starter = starter

    def start_workers(self) -> None:
        """Start a process for each rank."""
        self.open_meeting()
        workers: list[ProcessWorker] = []
        try:
            for rank in range(self.world_size):
                worker = ProcessWorker(
                    self._loop,
                    self._starter,
                    self._options,
                    self.worker_events,
                    replica=self.index,
                    rank=rank,
                )
                workers.append(worker)
        except OSError:
            for worker in workers:
                worker.abandon("was not started, as another rank could not be")
            raise
        self.workers = [*workers]
        num_local = self._config.data_parallel_size * self.world_size
        key = secrets.token_bytes(32)
        for worker in workers:
            local_index = self.index * self.world_size + worker.rank
            worker.start(
                MultiprocWorkerSetup(
                    **self.describe_worker(worker.rank, local_index, num_local, key), rendezvous=self.rendezvous
                )
            )

    def note_exit(self, pid: int, exit_code: int) -> None:
        """Handle the exit of a process."""
        for worker in self.all_workers:
            if worker.pid == pid and isinstance(worker, ProcessWorker):
                worker.note_exit(exit_code)
        self.drop_closed()
