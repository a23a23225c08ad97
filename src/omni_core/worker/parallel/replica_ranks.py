"""This rank's place among those of its replica, and the groups that it is in."""

from __future__ import annotations

import torch

from omni_core.worker.parallel.forward_peers import ForwardPeers
from omni_core.worker.parallel.layout import Dimension, ParallelLayout
from omni_core.worker.parallel.rank_group import RankGroup


class ReplicaRanks:
    """The ranks of a replica and the groups that they form. All ranks must make theirs at the same time.

    Args:
        everyone: All ranks, which are given the same work.
        layout: How they stand; of as many ranks.
        device: Where this one computes.

    Attributes:
        everyone: As given.
        layout: As given.
        rows: The ranks that share the rows of a forward with this one.
        peers: Those that compute each forward together with this one; None if it does so alone.

    Raises:
        RankGroupError: They could not connect.
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
