"""The base class of executors whose workers are reached over connections."""

from __future__ import annotations

from omni_core.outputs import OmniRequestOutput, SchedulerOutput
from omni_core.replicas.executor import ReplicaExecutor
from omni_core.wire.reactor import Reactor
from omni_core.wire.sealed import seal_requests


class WireExecutor(ReplicaExecutor[Reactor]):
    """A `ReplicaExecutor` with a reactor as its loop, which pickles each request separately."""

    def make_loop(self) -> Reactor:
        """Return a reactor."""
        return Reactor(f"omni-{self.name}", owner=self)

    def prepare_step(self, scheduler_output: SchedulerOutput) -> tuple[SchedulerOutput, list[OmniRequestOutput]]:
        """Return the step to send, and a failed output for each new request that cannot be pickled."""
        return seal_requests(scheduler_output)
