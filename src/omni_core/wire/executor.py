"""What all executors have in common whose workers are reached over connections."""

from __future__ import annotations

from collections.abc import Sequence

from omni_core.outputs import OmniRequestOutput, SchedulerOutput
from omni_core.replicas.executor import ReplicaExecutor
from omni_core.replicas.loop import Loop
from omni_core.replicas.replica import Replica, ReplicaEvents
from omni_core.wire.reactor import Reactor
from omni_core.wire.sealed import seal_requests


class WireExecutor(ReplicaExecutor):
    """A `ReplicaExecutor` with a reactor for its loop, which sends each request packed by itself.

    A subclass makes the replicas (`make_wire_replicas`), and lets go of what else there is (`release`).
    """

    def make_loop(self) -> Reactor:
        """Return a reactor."""
        return Reactor(f"omni-{self.name}", owner=self)

    def make_replicas(self, loop: Loop, events: ReplicaEvents) -> Sequence[Replica]:
        """Return the replicas, not started yet. In the reactor's thread."""
        assert isinstance(loop, Reactor)
        return self.make_wire_replicas(loop, events)

    def make_wire_replicas(self, reactor: Reactor, events: ReplicaEvents) -> Sequence[Replica]:
        """Return the replicas, not started yet. In the reactor's thread.

        Args:
            reactor: Where workers are to be watched.
            events: For the replicas.
        """
        raise NotImplementedError

    def prepare_step(self, scheduler_output: SchedulerOutput) -> tuple[SchedulerOutput, list[OmniRequestOutput]]:
        """Return what is sent of a step, and the outputs of those new requests that cannot be pickled."""
        return seal_requests(scheduler_output)
