"""The first message to a worker process."""

from __future__ import annotations

from dataclasses import dataclass

from omni_core.config import OmniDiffusionConfig


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a worker: who it is.

    Attributes:
        config: The configuration of the engine, with the threads that this worker may use.
        replica: Index of its replica.
        rank: Its rank within the replica.
        world_size: Ranks of the replica.
        local_index: Its number among all workers of this machine, from 0: which accelerator it takes.
        num_local: Number of those.
        rendezvous: Where the ranks of the replica find each other: an init method of torch.distributed.
    """

    config: OmniDiffusionConfig
    replica: int
    rank: int
    world_size: int
    local_index: int
    num_local: int
    rendezvous: str
