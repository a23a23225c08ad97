"""The first message to a worker process, and how the process makes its worker from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omni_core.config import OmniDiffusionConfig
from omni_core.hookspecs import Hooks
from omni_core.log import configure_logging
from omni_core.wire.program import Program
from omni_core.worker.parallel.accelerator import choose_accelerator

if TYPE_CHECKING:
    from omni_core.worker.parallel.rank_group import RankGroup


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """Describes a worker to its process. A subclass adds how the ranks of the replica connect.

    Attributes:
        config: The configuration of the engine.
        replica: Index of its replica.
        rank: Its rank within the replica.
        world_size: Ranks of the replica.
        local_index: Its number among the workers of its machine, from 0: which accelerator it takes.
        num_local: Number of those.
        shares_cores: Whether its threads are its share of its machine's cores, since nothing else was set.
        program: What it has of the program that made the engine.
        key: By which the ranks of the replica know each other.
    """

    config: OmniDiffusionConfig
    replica: int
    rank: int
    world_size: int
    local_index: int
    num_local: int
    shares_cores: bool
    program: Program
    key: bytes = field(repr=False)


def sets_no_threads(config: OmniDiffusionConfig) -> bool:
    """Return whether neither the configuration nor this process's environment says how many threads a worker has."""
    return config.num_threads is None and "OMP_NUM_THREADS" not in os.environ


def own_config(worker_setup: WorkerSetup) -> OmniDiffusionConfig:
    """Return the configuration of a worker, with the threads that it may have on the machine that it runs on."""
    if not worker_setup.shares_cores:
        return worker_setup.config
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # More threads than cores are ruinous: forwards were seen to take 200 times as long.
    return worker_setup.config.replace(num_threads=max(1, cores // worker_setup.num_local))


def make_worker(worker_setup: WorkerSetup, connect: Callable[[], RankGroup], hooks: Callable[[], Hooks]) -> Any:
    """Return the worker of this process, with its pipeline loaded.

    Args:
        worker_setup: The first message.
        connect: Meets the other ranks of the replica; called if there are any.
        hooks: Finds the plugins.
    """
    worker_setup.program.take_over()
    choose_accelerator(worker_setup.config, worker_setup.local_index, worker_setup.num_local)
    from omni_core.worker.worker import worker_class

    config = own_config(worker_setup)
    configure_logging(config.log_level, "json")  # the driver reads it and passes it on in the form that was asked for
    more: dict[str, Any] = {"group": connect()} if worker_setup.world_size > 1 else {}
    return worker_class(config)(config, replica=worker_setup.replica, rank=worker_setup.rank, hooks=hooks(), **more)
