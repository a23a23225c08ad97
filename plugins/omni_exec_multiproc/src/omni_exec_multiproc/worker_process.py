"""What runs in a worker process."""

from __future__ import annotations

import socket
from typing import Any

from omni_core.remote.channel import Channel
from omni_core.remote.process_end import die_with_parent
from omni_core.remote.worker_main import run_worker
from omni_core.worker.accelerator import choose_accelerator
from omni_exec_multiproc.messages import Setup


def run_spawned(work: int, control: int, parent: int) -> None:
    """`run_worker` in a new interpreter.

    Args:
        work: File descriptor of the channel for calls.
        control: File descriptor of the channel for what cannot wait.
        parent: Process id of the driver.
    """
    die_with_parent(parent)
    run_worker(Channel(socket.socket(fileno=work)), Channel(socket.socket(fileno=control)), make_worker)


def make_worker(setup: Setup) -> Any:
    """Return the worker that the first message describes."""
    choose_accelerator(setup.config, setup.local_index, setup.num_local)
    from omni_core.log import configure_logging
    from omni_core.plugins import default_registry
    from omni_core.worker.worker import worker_class

    config = setup.config
    configure_logging(config.log_level, "json")  # the driver reads it and passes it on in the form that was asked for
    more: dict[str, Any] = {}
    if setup.world_size > 1:
        from omni_core.worker.rank_group import RankGroup

        more["group"] = RankGroup.connect(
            setup.rank, setup.world_size, setup.rendezvous, device=config.device, timeout_s=config.startup_timeout_s
        )
    return worker_class(config)(config, replica=setup.replica, rank=setup.rank, hooks=default_registry(), **more)
