"""A replica whose workers are reached over connections."""

from __future__ import annotations

from typing import Any

from omni_core.config import OmniDiffusionConfig
from omni_core.hookspecs import Hooks
from omni_core.replicas.replica import Replica, ReplicaEvents
from omni_core.wire.options import WireOptions
from omni_core.wire.private_file import PrivateFile
from omni_core.wire.program import Program
from omni_core.wire.reactor import Reactor
from omni_core.wire.worker_setup import sets_no_threads


class WireReplica(Replica):
    """Describes its workers to their processes, and holds the file in which ranks of one machine rendezvous.

    Args:
        reactor: The reactor that watches the workers.
        config: The configuration for the workers.
        options: The options of the executor.
        events: The callbacks to the executor.
        index: Index of the replica.
        hooks: Plugins to notify of deaths and restarts.

    Raises:
        ConfigError: An object of `__main__` that the configuration names cannot be sent to workers.
    """

    _loop: Reactor

    def __init__(
        self,
        reactor: Reactor,
        config: OmniDiffusionConfig,
        options: WireOptions,
        events: ReplicaEvents,
        *,
        index: int,
        hooks: Hooks | None,
    ) -> None:
        super().__init__(reactor, config, options, events, index=index, hooks=hooks)
        self._program = Program.of_this_process(config)
        self._shares_cores = sets_no_threads(config)
        self._meeting: PrivateFile | None = None

    def describe_worker(self, rank: int, local_index: int, num_local: int, key: bytes) -> dict[str, Any]:
        """Return the fields of the `WorkerSetup` of a worker.

        Args:
            rank: Its rank in the replica.
            local_index: Its index among the workers of its machine.
            num_local: Number of workers of its machine.
            key: The key with which the ranks of this replica authenticate objects.
        """
        return {
            "config": self._config,
            "replica": self.index,
            "rank": rank,
            "world_size": self.world_size,
            "local_index": local_index,
            "num_local": num_local,
            "shares_cores": self._shares_cores,
            "program": self._program,
            "key": key,
        }

    def open_meeting(self) -> None:
        """Create the file in which the ranks rendezvous, if there are several. `clean_up` deletes it.

        Raises:
            OSError: It cannot be created.
        """
        self._meeting = PrivateFile("ranks") if self.world_size > 1 else None

    @property
    def rendezvous(self) -> str:
        """The init method of `torch.distributed` for that file; empty if there is none."""
        return "" if self._meeting is None else self._meeting.path.as_uri()

    def clean_up(self) -> None:
        """Delete the file in which the ranks rendezvous."""
        if self._meeting is not None:
            self._meeting.close()
            self._meeting = None
