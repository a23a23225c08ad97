"""The processes that torchrun has started: their ranks, and their connection."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from omni_core.errors import ConfigError, StartupError
from omni_core.worker.parallel.process_groups import abort, listening_on, local_interface
from omni_core.worker.parallel.rank_group import RankGroup
from omni_exec_torchrun.secret import load_secret

_LOOPBACK = "127.0.0.1"
_CLOSE_S = 5.0
# Numbers of the engines of this process. Engines with the same number on all ranks belong together.
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class SpmdEnvironment:
    """The ranks of this process, according to the environment variables of torchrun.

    Attributes:
        rank: Its rank.
        world_size: Number of ranks.
        local_rank: Its rank on this machine.
        local_world_size: Number of ranks on this machine.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def spmd_environment() -> SpmdEnvironment | None:
    """Return the ranks of this process; None if it was not started by torchrun.

    Raises:
        ConfigError: A variable of torchrun is not a number.
    """
    # Other launchers set some of these variables too. Only torchrun sets the run id.
    if any(name not in os.environ for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return None
    try:
        world_size = int(os.environ["WORLD_SIZE"])
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        return SpmdEnvironment(int(os.environ["RANK"]), world_size, int(os.environ["LOCAL_RANK"]), local_world_size)
    except ValueError as error:
        raise ConfigError(f"The environment that torchrun should have set is not torchrun's: {error}.") from None


class SpmdWorld:
    """The ranks of one engine, connected.

    Args:
        group: The ranks.
        subgroup: A process group of this engine, if the program has its own default group.
        peers: A description of each rank, for messages.
        host: The address on which rank 0 listens.
    """

    def __init__(self, group: RankGroup, subgroup: Any, peers: list[str], host: str) -> None:
        self.group = group
        self.peers = peers
        self.host = host
        self._subgroup = subgroup
        self._lock = threading.Lock()

    def leave(self, broken: bool = False) -> None:
        """Leave the other ranks. If `broken`, ranks that wait for this one get an error at once. May be repeated."""
        if broken:
            self.group.abort()
        else:
            self.group.close()
        with self._lock:
            subgroup, self._subgroup = self._subgroup, None
        if subgroup is not None:
            # In a thread, because NCCL may wait for a peer that is dead.
            arguments = (subgroup, broken)
            leaving = threading.Thread(target=_destroy, args=arguments, name="omni-spmd-leave", daemon=True)
            leaving.start()
            leaving.join(_CLOSE_S)


def join(environment: SpmdEnvironment, device: torch.device, timeout_s: float, startup_timeout_s: float) -> SpmdWorld:
    """Connect to the other ranks.

    Creates torch's default process group. If the program has created it already, creates a separate group, since the
    collectives of the program and of omni must not mix.

    Args:
        environment: The ranks of this process.
        device: The device of this rank.
        timeout_s: Seconds that a rank may wait for another in a collective.
        startup_timeout_s: Seconds to wait for the other ranks.

    Raises:
        StartupError: A rank did not come.
        RankGroupError: The ranks could not connect.
        ConfigError: The configured secret is invalid.
    """
    rank, world_size = environment.rank, environment.world_size
    if world_size == 1:
        return SpmdWorld(RankGroup.alone(), None, [_self_description()], _LOOPBACK)
    store, peers = _meet(environment, startup_timeout_s)
    is_local = environment.local_world_size == world_size
    interface = local_interface(f"tcp://{_LOOPBACK}:0") if is_local else None
    key = load_secret() or b""
    host = _LOOPBACK if is_local else os.environ["MASTER_ADDR"]
    if not dist.is_initialized():
        group = RankGroup.connect(
            rank, world_size, store, device=device, timeout_s=timeout_s, interface=interface, key=key
        )
        return SpmdWorld(group, None, peers, host)
    if (dist.get_rank(), dist.get_world_size()) != (rank, world_size):
        raise StartupError(
            f"Torch's default process group calls this process rank {dist.get_rank()} of {dist.get_world_size()}, and "
            f"torchrun calls it rank {rank} of {world_size}. Make the group of all processes, or leave it to omni."
        )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with listening_on(interface):
        subgroup = dist.new_group(backend=backend, timeout=datetime.timedelta(seconds=timeout_s))
    return SpmdWorld(RankGroup.within(subgroup, key), subgroup, peers, host)


def _meet(environment: SpmdEnvironment, timeout_s: float) -> tuple[Any, list[str]]:
    """Wait until all ranks have come. Return a store for this engine, and the descriptions of the ranks."""
    number = next(_numbers)
    deadline = time.monotonic() + timeout_s
    try:
        found = rendezvous("env://", timeout=datetime.timedelta(seconds=timeout_s))
        store = PrefixStore(f"omni/{number}", next(found)[0])
        keys = [f"rank {rank}" for rank in range(environment.world_size)]
        store.set(keys[environment.rank], _self_description())
        try:
            store.wait(keys, datetime.timedelta(seconds=max(0.001, deadline - time.monotonic())))
        except RuntimeError:
            missing = [key for key in keys if not store.check([key])]
            raise StartupError(
                f"Rank {environment.rank} waited {timeout_s:g} s in vain for {', '.join(missing)} of "
                f"{environment.world_size} to make engine number {number + 1}. In SPMD mode every rank must make it."
            ) from None
        return store, [store.get(key).decode() for key in keys]
    except (RuntimeError, ValueError, OSError) as error:
        raise StartupError(
            f"Rank {environment.rank} cannot reach the others at MASTER_ADDR = {os.environ.get('MASTER_ADDR')}, "
            f"MASTER_PORT = {os.environ.get('MASTER_PORT')}: {str(error).splitlines()[0]}"
        ) from error


def _self_description() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _destroy(subgroup: Any, broken: bool) -> None:
    with contextlib.suppress(Exception):  # the program may have destroyed all groups
        if broken:
            abort(subgroup)
        else:
            dist.destroy_process_group(subgroup)
