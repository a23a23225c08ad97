"""The groups of ranks of a replica that this rank belongs to."""

from __future__ import annotations

import torch

from omni_core.worker.parallel.forward_peers import ForwardPeers
from omni_core.worker.parallel.layout import Dimension, ParallelLayout
from omni_core.worker.parallel.rank_group import RankGroup


class ReplicaRanks:
    """The ranks of a replica and their groups. All ranks must create this object at the same time.

    Args:
        everyone: All ranks of the replica, which get the same calls.
        layout: The grid of these ranks.
        device: The device of this rank.

    Attributes:
        everyone: All ranks of the replica.
        layout: The grid of these ranks.
        rows: The ranks that share the rows of a forward pass with this one.
        peers: The ranks that compute each forward pass together with this one; None if it computes alone.

    Raises:
        RankGroupError: The ranks could not connect.
    """

    def __init__(self, everyone: RankGroup, layout: ParallelLayout, device: torch.device) -> None:
        assert everyone.world_size == layout.world_size
        self.everyone = everyone
        self.layout = layout
        self.rows = everyone
        self.peers: ForwardPeers | None = None
        if layout.shares_forwards:
            self.rows = self.along("cfg")
            shared: list[tuple[Dimension, ...]] = [("ring",), ("ulysses",), ("ring", "ulysses"), ("tensor",)]
            collectives = [self.along(*names) for names in shared]
            self.peers = ForwardPeers(self.along("ring", "ulysses", "tensor"), collectives, device)

    def along(self, *dimensions: Dimension) -> RankGroup:
        """Return the group of the ranks that differ from this one along the given dimensions only."""
        return self.everyone.split(self.layout.parts(*dimensions))
