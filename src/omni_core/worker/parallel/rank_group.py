"""The ranks of one replica, and the exchange of values and tensors between them."""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from omni_core.errors import RankGroupError
from omni_core.worker.parallel.object_transfer import ForgedError, NotSent, Seal, bytes_tensor, pickled
from omni_core.worker.parallel.process_groups import (
    all_gather,
    end,
    listening_on,
    local_interface,
    make_default,
    new_part,
)
from omni_core.worker.pipeline.loader import resolve_device

# A broadcast object up to this size is sent in one message, together with its length.
_MESSAGE_BYTES = 4096
_LENGTH = struct.Struct("<Q")
# Maximum number of values in one `agree_all`. The length is fixed, so that ranks that are out of step get an error.
_MOST_VALUES = 6


class RankGroup:
    """The ranks of one replica, over `torch.distributed`: gloo on CPUs, NCCL with gloo beside it on GPUs.

    Create it with `connect`, `within` or `alone`. All ranks must call the same methods in the same order. After an
    error the group cannot be used any more: every method raises.

    Args:
        process_group: The process group of torch; None for a single rank. It must have a backend for CPU tensors.
        owns: Whether `close` destroys torch's default process group.
        interface: Network interface on which its parts listen. None: the choice of the backends.
        key: The shared key of the ranks: objects without its code are refused. Empty: no authentication.
        members: Its ranks in the parent group; empty if there is no parent group.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None,
        owns: bool = False,
        interface: str | None = None,
        key: bytes = b"",
        members: Sequence[int] = (),
    ) -> None:
        self._group = process_group
        self._key = key
        self._seal = Seal(key, ",".join(map(str, members)))
        self._owns = owns
        self._interface = interface
        self._parts: dict[tuple[tuple[int, ...], ...], RankGroup] = {}
        self._releases: list[Callable[[], None]] = []
        self._broken = ""
        self.rank = 0 if process_group is None else process_group.rank()
        self.world_size = 1 if process_group is None else process_group.size()
        self._message = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)

    @classmethod
    def alone(cls) -> RankGroup:
        """Return the group of a single rank. It needs no `torch.distributed`."""
        return cls(None)

    @classmethod
    def within(cls, process_group: dist.ProcessGroup, key: bytes = b"") -> RankGroup:
        """Return the ranks of a process group that the caller has created, and will destroy.

        Args:
            process_group: The group.
            key: As in `connect`.
        """
        return cls(process_group, key=key)

    @classmethod
    def connect(
        cls,
        rank: int,
        world_size: int,
        rendezvous: str | Store,
        *,
        device: str | torch.device = "cpu",
        timeout_s: float = 60.0,
        interface: str | None = None,
        backend: str = "auto",
        key: bytes = b"",
    ) -> RankGroup:
        """Connect to the other ranks: create torch's default process group.

        Args:
            rank: Number of this rank.
            world_size: Number of ranks. For one rank, nothing is created.
            rendezvous: An init method of `torch.distributed` (`file:///path`, `tcp://127.0.0.1:port`) or a store.
            device: The device of the ranks.
            timeout_s: Seconds to wait for the other ranks, here and in every method.
            interface: Network interface to listen on. Unset: that of `GLOO_SOCKET_IFNAME` and `NCCL_SOCKET_IFNAME`,
                else loopback if the rendezvous is on this machine, else the choice of the backends.
            backend: "gloo", or "nccl" with gloo beside it. "auto" is the latter where the ranks compute on CUDA.
            key: The shared key of the ranks. With it, only objects of these ranks are unpickled; tensors are not
                authenticated. Empty: any process that reaches the ports can take part.

        Raises:
            RankGroupError: The ranks did not connect in time, or this process already has a default process group.
        """
        if world_size == 1:
            return cls.alone()
        where = f"Rank {rank} of {world_size}"
        if not dist.is_available():
            raise RankGroupError(f"{where}: this build of torch has no torch.distributed; use one rank per replica.")
        if dist.is_initialized():
            raise RankGroupError(
                f"{where}: this process has a default process group already. Use RankGroup.within(process_group)."
            )
        place = resolve_device(device) if isinstance(device, str) else device
        if isinstance(rendezvous, str):
            interface = interface or local_interface(rendezvous)
        try:
            make_default(
                rank,
                world_size,
                rendezvous,
                device=place,
                timeout_s=timeout_s,
                interface=interface,
                backend=backend,
            )
            group = cls(dist.group.WORLD, owns=True, interface=interface, key=key)
            group.agree_all("connected", [])
        except RankGroupError:
            group.close()
            raise
        except (RuntimeError, ValueError, OSError) as error:
            raise RankGroupError(
                f"{where} could not connect to the others within {timeout_s:g} s: {_first_line(error)}"
            ) from error
        return group

    @property
    def process_group(self) -> dist.ProcessGroup:
        """The process group of torch. References to it must be dropped in an `on_release` callback.

        Raises:
            RankGroupError: There is none: a single rank, or the group is closed.
        """
        if self._group is None:
            raise RankGroupError(f"The group of this replica's ranks is of no further use: {self._broken or 'alone'}.")
        return self._group

    def split(self, parts: Sequence[Sequence[int]]) -> RankGroup:
        """Return the group of the part that this rank belongs to. It is closed with this group.

        Args:
            parts: All ranks, each in one part, in ascending order. The same on all ranks, and all must call. The same
                parts return the same group again.

        Raises:
            RankGroupError: The ranks could not connect.
        """
        key = tuple(tuple(part) for part in parts)
        if self.world_size == 1:
            return self
        if key not in self._parts:
            try:
                with listening_on(self._interface):
                    part = new_part(self.process_group, key)
                    self._parts[key] = RankGroup(part, key=self._key, members=_part_of(self.rank, key))
            except (RuntimeError, ValueError, OSError) as error:
                self._broken = _first_line(error)
                raise RankGroupError(f"The ranks {key} of this replica could not connect: {self._broken}") from error
        return self._parts[key]

    def on_release(self, release: Callable[[], None]) -> None:
        """Call `release` when the group is closed. It must drop all references to process groups of the parts.

        Connections are closed only when they are not referenced any more.
        """
        self._releases.append(release)

    def agree(self, value: float) -> float:
        """Return the maximum of `value` over all ranks.

        Raises:
            RankGroupError: A rank is gone, or did not reply in time.
        """
        return self.agree_all("agree", [value])[0]

    def agree_all(self, purpose: str, values: Sequence[float]) -> list[float]:
        """Return the maximum of each value over all ranks, in one exchange.

        Args:
            purpose: Name of the exchange, the same on all ranks. Different names reveal that ranks are out of step.
            values: At most 6 values.

        Raises:
            RankGroupError: A rank is gone, did not reply in time, or called with another purpose.
        """
        if self.world_size == 1:
            return list(values)
        tag = zlib.crc32(purpose.encode())
        sent = [float(tag), -float(tag), *values, *[0.0] * (_MOST_VALUES - len(values))]
        numbers = torch.tensor(sent, dtype=torch.float64)
        self._communicate(lambda group: dist.all_reduce(numbers, dist.ReduceOp.MAX, group))
        received: list[float] = numbers.tolist()
        if received[0] != -received[1]:
            places = self._gather_objects(purpose)
            self._broken = "; ".join(f"rank {rank} at {place!r}" for rank, place in enumerate(places))
            raise RankGroupError(f"The ranks of this replica have lost step: {self._broken}.")
        return received[2 : 2 + len(values)]

    def broadcast_object(self, value: Any = None) -> Any:
        """Return the `value` of rank 0, which must be picklable.

        Raises:
            TypeError: It cannot be pickled. All ranks raise.
            RankGroupError: A rank is gone, did not reply in time, or the object is not from a rank.
        """
        if self.world_size == 1:
            return value
        self._seal.next_message()
        data, found = b"", value
        if self.rank == 0:
            data, not_sent = pickled(value)
            data, found = self._seal.close(data, 0), not_sent or value
        room = _MESSAGE_BYTES - _LENGTH.size
        message = self._message.numpy().data
        if self.rank == 0:
            message[: _LENGTH.size] = _LENGTH.pack(len(data))
            message[_LENGTH.size : _LENGTH.size + min(room, len(data))] = data[:room]
        self._communicate(lambda group: dist.broadcast(self._message, group=group, group_src=0))
        (length,) = _LENGTH.unpack(message[: _LENGTH.size])
        if self.rank != 0:
            data = bytes(message[_LENGTH.size : _LENGTH.size + min(room, length)])
        if length > room:
            rest = bytes_tensor(data[room:]) if self.rank == 0 else torch.empty(length - room, dtype=torch.uint8)
            self._communicate(lambda group: dist.broadcast(rest, group=group, group_src=0))
            data = data if self.rank == 0 else data + bytes(rest.numpy())
        if self.rank != 0:
            found = self._unpickled(data, 0)
        if isinstance(found, NotSent):
            raise TypeError(found.reason)
        return found

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return the `value` of each rank. A value that cannot be pickled arrives as None.

        Raises:
            RankGroupError: A rank is gone, did not reply in time or is out of step, or an object is not from a rank.
        """
        if self.world_size == 1:
            return [value]
        self.agree_all("gather objects", [])
        return self._gather_objects(value)

    def rows_buffer(self, tensor: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Allocate the buffer for `all_gather_rows` with the same arguments: `[world_size * max(counts), ...]`."""
        return tensor.new_empty(self.world_size * max(counts), *tensor.shape[1:])

    def all_gather_rows(
        self, tensor: torch.Tensor, counts: Sequence[int], buffer: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the rows of all ranks, in the order of the ranks.

        Args:
            tensor: The rows of this rank, `[counts[rank], ...]`. Dtype and other dimensions are the same on all ranks.
            counts: Number of rows of each rank, `[world_size]`.
            buffer: The result of `rows_buffer`. With it nothing is allocated here before the exchange, so that no rank
                can run out of memory while the others wait for it.

        Returns:
            `[sum(counts), ...]`, with dtype and device of `tensor`.

        Raises:
            RankGroupError: A rank is gone, or did not reply in time.
        """
        if self.world_size == 1:
            return tensor
        if buffer is None:
            buffer = self.rows_buffer(tensor, counts)
        most = max(counts)
        mine = buffer[self.rank * most : (self.rank + 1) * most]
        mine[: counts[self.rank]] = tensor
        # As bytes: not every backend supports every dtype.
        sent, received = mine.view(-1).view(torch.uint8), buffer.view(-1).view(torch.uint8)
        if received.numel():
            self._communicate(lambda group: all_gather(received, sent, group))
        if min(counts) == most:
            return buffer
        return torch.cat([buffer[rank * most : rank * most + count] for rank, count in enumerate(counts)])

    def abort(self) -> None:
        """Leave the group after a fault. Ranks that wait for this one get an error at once."""
        self._broken = self._broken or "it was aborted"
        self.close()

    def close(self) -> None:
        """Leave the group. Does not wait for other ranks; may be repeated."""
        group, self._group = self._group, None
        was_broken, self._broken = bool(self._broken), self._broken or "it was closed"
        for release in self._releases:
            release()
        ended: list[dist.ProcessGroup | None] = []
        for part in self._parts.values():
            if part._group is not None:
                ended.append(part._group)
            part._group, part._broken = None, self._broken
        if group is None or not dist.is_initialized():
            return
        if self._owns:
            ended = [None]  # the default process group, and with it all others
        del group
        end(ended, was_broken)

    def _communicate(self, collective: Callable[[dist.ProcessGroup], Any]) -> None:
        if self._group is None or self._broken:
            raise RankGroupError(f"The group of this replica's ranks is of no further use: {self._broken}.")
        try:
            collective(self._group)
        except (RuntimeError, ValueError) as error:
            self._broken = _first_line(error)
            raise RankGroupError(
                f"Rank {self.rank} of {self.world_size} cannot reach the others: {self._broken}"
            ) from error

    def _gather_objects(self, value: Any) -> list[Any]:
        self._seal.next_message()
        data = self._seal.close(pickled(value)[0], self.rank)
        lengths = torch.zeros(self.world_size, dtype=torch.int64)
        lengths[self.rank] = len(data)
        self._communicate(lambda group: dist.all_reduce(lengths, dist.ReduceOp.MAX, group))
        counts: list[int] = lengths.tolist()
        parts = torch.split(self.all_gather_rows(bytes_tensor(data), counts), counts)
        values = [self._unpickled(bytes(part.numpy()), rank) for rank, part in enumerate(parts)]
        return [None if isinstance(found, NotSent) else found for found in values]

    def _unpickled(self, data: bytes, sender: int) -> Any:
        try:
            return pickle.loads(self._seal.open(data, sender))  # noqa: S301  # from a rank of our own
        except ForgedError:
            self._broken = f"what came in the name of rank {sender} is not from it"
            raise RankGroupError(
                f"Rank {self.rank} of {self.world_size} refuses an object: {self._broken}. Another process has taken "
                "part in what the ranks of this replica say to each other."
            ) from None


def _part_of(rank: int, parts: Sequence[Sequence[int]]) -> Sequence[int]:
    return next(part for part in parts if rank in part)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
