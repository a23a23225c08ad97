"""What all executors have in common whose workers are reached over connections."""

from __future__ import annotations

from omni_core.outputs import OmniRequestOutput, SchedulerOutput
from omni_core.replicas.executor import ReplicaExecutor
from omni_core.wire.reactor import Reactor
from omni_core.wire.sealed import seal_requests


class WireExecutor(ReplicaExecutor[Reactor]):
    """A `ReplicaExecutor` with a reactor for its loop, which sends each request packed by itself."""

    def make_loop(self) -> Reactor:
        """Return a reactor."""
        return Reactor(f"omni-{self.name}", owner=self)

    def prepare_step(self, scheduler_output: SchedulerOutput) -> tuple[SchedulerOutput, list[OmniRequestOutput]]:
        """Return what is sent of a step, and the outputs of those new requests that cannot be pickled."""
        return seal_requests(scheduler_output)
