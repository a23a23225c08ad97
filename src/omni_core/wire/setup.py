"""The first message to a worker process, and the worker that it describes."""

from __future__ import annotations

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
    """Who a worker is. A subclass says where it finds the others of its replica.

    Attributes:
        config: The configuration of the engine, with the threads that this worker may use.
        replica: Index of its replica.
        rank: Its rank within the replica.
        world_size: Ranks of the replica.
        local_index: Its number among the workers of its machine, from 0: which accelerator it takes.
        num_local: Number of those.
        program: What it has of the program that made the engine.
        key: By which the ranks of the replica know each other.
    """

    config: OmniDiffusionConfig
    replica: int
    rank: int
    world_size: int
    local_index: int
    num_local: int
    program: Program
    key: bytes = field(repr=False)


def make_worker(setup: WorkerSetup, connect: Callable[[], RankGroup], hooks: Callable[[], Hooks]) -> Any:
    """Return the worker of this process, with its pipeline loaded.

    Args:
        setup: Who it is.
        connect: Meets the other ranks of the replica; called if there are any.
        hooks: Finds the plugins.
    """
    setup.program.take_over()
    choose_accelerator(setup.config, setup.local_index, setup.num_local)
    from omni_core.worker.worker import worker_class

    config = setup.config
    configure_logging(config.log_level, "json")  # the driver reads it and passes it on in the form that was asked for
    more: dict[str, Any] = {"group": connect()} if setup.world_size > 1 else {}
    return worker_class(config)(config, replica=setup.replica, rank=setup.rank, hooks=hooks(), **more)
