"""Creates and destroys the process groups of torch that connect the ranks of a replica."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

# Seconds to wait for the end of process groups.
_END_S = 5.0


def make_default(
    rank: int,
    world_size: int,
    rendezvous: str | Store,
    *,
    device: torch.device,
    timeout_s: float,
    interface: str | None,
    backend: str = "auto",
) -> dist.ProcessGroup:
    """Create torch's default process group with the other ranks.

    Args:
        rank: Number of this rank.
        world_size: Number of ranks.
        rendezvous: An init method of `torch.distributed`, or a store.
        device: The device of the ranks.
        timeout_s: Seconds to wait for the other ranks, here and in every collective.
        interface: Network interface to listen on. None: what the backends choose.
        backend: "gloo", or "nccl" with gloo beside it. "auto" is the latter where the ranks compute on CUDA.

    Raises:
        RuntimeError: The other ranks did not connect in time.
        ValueError: The rendezvous is invalid, or the backend cannot be used on the device.
        OSError: Its file or address cannot be used.
    """
    # The default arguments of its functions hold the default group at the time of the import. Imported later (by
    # diffusers), they would keep the group alive forever, and its connections would outlive `abort`.
    importlib.import_module("torch.distributed.nn.functional")
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and device.type != "cuda":
        raise ValueError(f"the backend nccl connects NVIDIA GPUs, and this rank computes on {device.type}; use gloo")
    options: dict[str, Any] = {"init_method" if isinstance(rendezvous, str) else "store": rendezvous}
    if backend == "nccl":
        options["device_id"] = torch.device(
            "cuda", torch.cuda.current_device() if device.index is None else device.index
        )
    with listening_on(interface):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if backend == "nccl" else backend,
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout_s),
            **options,
        )
    group = dist.group.WORLD
    assert group is not None
    return group


def new_part(whole: dist.ProcessGroup, parts: Sequence[Sequence[int]]) -> dist.ProcessGroup:
    """Return the process group of the part that this rank belongs to.

    Args:
        whole: The group of all ranks. The part gets its backends and timeout.
        parts: The ranks of each part, by their numbers in `whole`. All ranks of `whole` must call.
    """
    members = dist.get_process_group_ranks(whole)
    # If all processes of the program take part, torch numbers the groups. Otherwise it names them by their ranks, and a
    # second group of the same ranks would read old entries of the first one from the store.
    is_whole_world = len(members) == dist.get_world_size()
    rank = whole.rank()
    timeout = _backend(whole, torch.device("cpu")).options._timeout
    found: dist.ProcessGroup | None = None
    for part in parts:
        if not is_whole_world and rank not in part:
            continue
        made = dist.new_group(
            [members[number] for number in part],
            timeout=timeout,
            backend=dist.get_backend_config(whole),
            use_local_synchronization=not is_whole_world,
        )
        if rank in part:
            found = made
    assert found is not None, f"rank {rank} is in none of {parts}"
    return found


def end(groups: list[dist.ProcessGroup | None], was_broken: bool) -> None:
    """Destroy process groups, and empty the list. None stands for the default group, and with it all groups.

    It waits a limited time; after that the work continues in a thread.
    """
    # In a thread, because NCCL may wait for a peer that is dead.
    ending = threading.Thread(target=_end, args=(groups, was_broken), name="omni-rank-group-close", daemon=True)
    ending.start()
    ending.join(_END_S)


def all_gather(received: torch.Tensor, sent: torch.Tensor, group: dist.ProcessGroup) -> None:
    """Gather `sent`, `[n]`, of all ranks in `received`, `[ranks * n]`."""
    # Renamed in torch 2.13, and the old name warns there.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(received, sent, group=group)


def abort(group: dist.ProcessGroup | None) -> None:
    """Destroy a process group without waiting for the other ranks (a private function of torch); None is all groups."""
    dist.distributed_c10d._abort_process_group(group)


def default_store() -> Store:
    """Return the store of the default process group."""
    store: Store = dist.distributed_c10d._get_default_store()
    return store


def num_collectives(group: dist.ProcessGroup, device: torch.device) -> int:
    """Return the number of collectives of a group so far, on a kind of device: equal on ranks that are in step."""
    number: int = _backend(group, device)._get_sequence_number_for_group()
    return number


def _backend(group: dist.ProcessGroup, device: torch.device) -> Any:
    return group._get_backend(device)


def _end(groups: list[dist.ProcessGroup | None], was_broken: bool) -> None:
    while groups:
        group = groups.pop()
        with contextlib.suppress(Exception):
            if was_broken:
                abort(group)
            else:
                dist.destroy_process_group(group)


def local_interface(init_method: str) -> str | None:
    """Return the loopback interface if `init_method` only works on one machine, else None."""
    url = urlsplit(init_method)
    if url.scheme != "file" and (url.hostname or "") not in ("localhost", "127.0.0.1", "::1"):
        return None
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)


@contextlib.contextmanager
def listening_on(interface: str | None) -> Iterator[None]:
    """Let gloo and NCCL listen on `interface`, unless it is None or the environment names one."""
    names = [] if interface is None else [name for name in _VARIABLES if name not in os.environ]
    try:
        os.environ.update(dict.fromkeys(names, interface or ""))
        yield
    finally:
        for name in names:
            del os.environ[name]
