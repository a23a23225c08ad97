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
        rank: Its rank in the replica.
        world_size: Number of ranks of the replica.
        local_index: Its index among the workers of its machine, which selects its accelerator.
        num_local: Number of workers of its machine.
        shares_cores: Whether its number of threads is its share of the machine's cores, because none was configured.
        program: The parts of the program that it needs.
        key: The key with which the ranks of the replica authenticate objects.
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
    """Return whether neither the configuration nor the environment sets the number of threads of a worker."""
    return config.num_threads is None and "OMP_NUM_THREADS" not in os.environ


def own_config(worker_setup: WorkerSetup) -> OmniDiffusionConfig:
    """Return the configuration of a worker, with its number of threads on the machine that it runs on."""
    if not worker_setup.shares_cores:
        return worker_setup.config
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # With more threads than cores, forward passes took up to 200 times as long.
    return worker_setup.config.replace(num_threads=max(1, cores // worker_setup.num_local))


def make_worker(worker_setup: WorkerSetup, connect: Callable[[], RankGroup], hooks: Callable[[], Hooks]) -> Any:
    """Return the worker of this process, with its pipeline loaded.

    Args:
        worker_setup: The first message.
        connect: Connects to the other ranks of the replica; called if there are any.
        hooks: Returns the plugins.
    """
    worker_setup.program.take_over()
    choose_accelerator(worker_setup.config, worker_setup.local_index, worker_setup.num_local)
    from omni_core.worker.worker import worker_class

    config = own_config(worker_setup)
    configure_logging(config.log_level, "json")  # the driver parses it and logs it in the configured format
    more: dict[str, Any] = {"group": connect()} if worker_setup.world_size > 1 else {}
    return worker_class(config)(config, replica=worker_setup.replica, rank=worker_setup.rank, hooks=hooks(), **more)
