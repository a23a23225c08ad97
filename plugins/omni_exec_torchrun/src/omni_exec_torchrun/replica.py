"""The ranks of one replica, which a launcher starts."""

from __future__ import annotations

import itertools
import secrets
from typing import Protocol

from omni_core.config import OmniDiffusionConfig
from omni_core.hookspecs import Hooks
from omni_core.replicas.replica import ReplicaEvents
from omni_core.wire.arrival import Arrival
from omni_core.wire.reactor import Reactor
from omni_core.wire.replica import WireReplica
from omni_exec_torchrun.options import TorchrunOptions
from omni_exec_torchrun.rank_worker import RankWorker
from omni_exec_torchrun.worker_setup import TorchrunWorkerSetup


class Launch(Protocol):
    """Starts the ranks of a replica: see `LaunchGroup`."""

    def start(self) -> None:
        """Start the launcher, unless it runs. Raises OSError if it cannot be started."""

    def take_waiting(self, replica: RankReplica) -> None:
        """Pass the ranks that have already connected to the replica."""

    def last_output(self) -> str:
        """Return the last lines of output."""


class RankReplica(WireReplica):
    """Waits for the ranks that a launcher starts, and sends them their setup when all have connected.

    Args:
        reactor: The reactor that watches the ranks.
        launch: Starts the ranks.
        config: The configuration for the ranks.
        options: The options of the executor.
        events: The callbacks to the executor.
        index: Index of the replica.
        num_local: Number of ranks of the engine if all are on this machine; None if they are on several machines.
        hooks: Plugins to notify of deaths and restarts.
    """

    _options: TorchrunOptions

    def __init__(
        self,
        reactor: Reactor,
        launch: Launch,
        config: OmniDiffusionConfig,
        options: TorchrunOptions,
        events: ReplicaEvents,
        *,
        index: int,
        num_local: int | None,
        hooks: Hooks | None,
    ) -> None:
        super().__init__(reactor, config, options, events, index=index, hooks=hooks)
        self._launch = launch
        self._num_local = num_local
        self._is_waiting = False
        # Unique, so that ranks of an earlier start or of another driver cannot rendezvous with these.
        self._name = secrets.token_hex(8)
        self._meetings = itertools.count()

    def start_workers(self) -> None:
        """Start the launcher, unless it runs, and wait for the ranks to connect."""
        self.drop_closed()
        self._is_waiting = True
        try:
            if self._num_local is not None:
                self.open_meeting()
            self._launch.start()
        except OSError as error:
            self.start_failed(f"could not be launched: {error}")
            return
        self._launch.take_waiting(self)

    def clean_up(self) -> None:
        """Accept no ranks until the next start."""
        self._is_waiting = False
        super().clean_up()

    def take(self, arrival: Arrival) -> bool:
        """Accept a rank that has connected.

        Returns:
            Whether it was accepted. If not, the caller keeps it until the next start.
        """
        rank = arrival.hello.rank % self.world_size
        older = next((worker for worker in self.workers if worker.rank == rank), None)
        if older is not None:
            older.declare_dead("was started anew by its launcher")  # which calls `clean_up`
        if not self._is_waiting:
            return False
        worker = RankWorker(self._loop, arrival, self._options, self.worker_events, replica=self.index, rank=rank)
        self.workers = [*self.workers, worker]
        worker.listen()
        if len(self.workers) == self.world_size:
            self._set_up()
        return True

    def note_exit(self, pid: int, exit_code: int) -> None:
        """Handle the exit code of a process of this machine."""
        for worker in self.all_workers:
            if worker.pid == pid and isinstance(worker, RankWorker) and worker.is_local:
                worker.said = self._launch.last_output()
                worker.note_exit(exit_code)

    def launcher_ended(self, what: str, said: str) -> None:
        """Handle the exit of the launcher.

        Args:
            what: What happened, as text that follows "Replica 0".
            said: The last output.
        """
        if self.state != "closed" and (self._is_waiting or self.workers):
            self.start_failed(what, said)

    def _set_up(self) -> None:
        self._is_waiting = False
        self.workers = sorted(self.workers, key=lambda worker: worker.rank)
        meeting, key = f"{self._name}/{next(self._meetings)}", secrets.token_bytes(32)
        for worker in list(self.workers):
            assert isinstance(worker, RankWorker)
            hello = worker.hello
            local_index, num_local = hello.local_rank, hello.local_world_size
            if self._num_local is not None:
                local_index, num_local = self.index * self.world_size + worker.rank, self._num_local
            worker.set_up(
                TorchrunWorkerSetup(
                    **self.describe_worker(worker.rank, local_index, num_local, key),
                    rendezvous=self.rendezvous,
                    meeting=meeting,
                    backend=self._options.backend,
                    timeout_s=self._options.timeout_s,
                )
            )
