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
    """Knows what its workers need of this program, and where those of one machine meet.

    Args:
        reactor: Where the workers are watched.
        config: The configuration for the workers.
        options: Of the executor.
        events: What the executor is told and asked.
        index: Its index.
        hooks: Plugins to tell of deaths and restarts.

    Raises:
        ConfigError: Something that the configuration names in `__main__` cannot be sent to workers.
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
            rank: Its rank.
            local_index: Its number among the workers of its machine.
            num_local: Number of those.
            key: By which the ranks of this replica know each other.
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
        """Make the file in which the ranks of this machine meet, if there are several. It is gone with `clean_up`.

        Raises:
            OSError: There is no place for it.
        """
        self._meeting = PrivateFile("ranks") if self.world_size > 1 else None

    @property
    def rendezvous(self) -> str:
        """By which `torch.distributed` finds that file; empty if there is none."""
        return "" if self._meeting is None else self._meeting.path.as_uri()

    def clean_up(self) -> None:
        """Let go of what the ranks have met in."""
        if self._meeting is not None:
            self._meeting.close()
            self._meeting = None
