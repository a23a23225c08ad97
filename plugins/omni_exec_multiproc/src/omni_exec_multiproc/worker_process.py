"""What runs in a worker process, and the first message that it gets."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omni_core.plugins import default_registry
from omni_core.wire import worker_setup as wire_setup
from omni_core.wire.channel import Channel
from omni_core.wire.worker_main import run_worker

if TYPE_CHECKING:
    from omni_core.worker.parallel.rank_group import RankGroup


@dataclass(frozen=True, slots=True)
class MultiprocWorkerSetup(wire_setup.WorkerSetup):
    """The first message to a worker process.

    Attributes:
        rendezvous: The init method of torch.distributed for the ranks of the replica; empty for a single rank.
    """

    rendezvous: str


def run_connected(work: int, control: int) -> None:
    """Serve calls as a worker until the driver closes the connection. Does not return.

    Args:
        work: File descriptor of the channel for calls.
        control: File descriptor of the channel for urgent messages.
    """
    run_worker(
        # No timeout: a stopped driver may continue. If it has ended, the connection is closed.
        Channel(socket.socket(fileno=work), send_timeout_s=None),
        Channel(socket.socket(fileno=control), send_timeout_s=None),
        make_worker,
    )


def make_worker(worker_setup: MultiprocWorkerSetup) -> Any:
    """Make the worker from the first message."""

    def connect() -> RankGroup:
        from omni_core.worker.parallel.rank_group import RankGroup

        config = worker_setup.config
        return RankGroup.connect(
            worker_setup.rank,
            worker_setup.world_size,
            worker_setup.rendezvous,
            device=config.device,
            timeout_s=config.startup_timeout_s,
            key=worker_setup.key,
        )

    return wire_setup.make_worker(worker_setup, connect, default_registry)
