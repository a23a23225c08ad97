"""The first message to a rank."""

from __future__ import annotations

from dataclasses import dataclass

from omni_core.config import OmniDiffusionConfig


@dataclass(frozen=True, slots=True)
class Setup:
    """Who a rank is, and where it finds the others of its replica.

    Attributes:
        config: The configuration of the engine, with the threads that this rank may use.
        replica: Index of its replica.
        rank: Its rank within the replica.
        world_size: Ranks of the replica.
        local_index: Its number among the ranks of its machine, from 0: which accelerator it takes.
        num_local: Number of those.
        meeting: Name under which the ranks of the replica meet in torch's store; never used twice.
        backend: What connects them: auto, gloo or nccl.
        timeout_s: Seconds to wait for another rank.
    """

    config: OmniDiffusionConfig
    replica: int
    rank: int
    world_size: int
    local_index: int
    num_local: int
    meeting: str
    backend: str
    timeout_s: float
