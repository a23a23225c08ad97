"""The ranks of one replica, and what they tell each other."""

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

# A broadcast object up to this size travels in one message, with its length.
_MESSAGE_BYTES = 4096
_LENGTH = struct.Struct("<Q")
# Most values in one `agree_all`. All have the same length, so that ranks that lost step still get their error.
_MOST_VALUES = 6


class RankGroup:
    """The ranks of one replica, over `torch.distributed`: gloo on CPUs, NCCL with gloo beside it on GPUs.

    Make one with `connect`, `within` or `alone`. All ranks must call the same methods in the same order. After an
    error the group is of no further use: every method raises.

    Args:
        process_group: What connects the ranks; None for a single rank. It must have a backend for CPU tensors.
        owns: Whether `close` destroys torch's default process group.
        interface: Network interface on which parts of it are to listen. None: what the backends choose.
        key: What the ranks share and nobody else knows: objects from others are refused. Empty: none are.
        members: Its ranks in the group that it is a part of; empty if it is a part of none.
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
        """Return the ranks of a process group that somebody else has made, and will destroy.

        Args:
            process_group: The group.
            key: As for `connect`.
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
        """Meet the other ranks: set up torch's default process group.

        Args:
            rank: Number of this rank.
            world_size: Number of ranks. Of one, nothing is set up.
            rendezvous: An init method of `torch.distributed` (`file:///path`, `tcp://127.0.0.1:port`) or a store.
            device: Where the ranks compute.
            timeout_s: Seconds to wait for the others, here and in every method.
            interface: Network interface to listen on. Unset: what `GLOO_SOCKET_IFNAME` and `NCCL_SOCKET_IFNAME` say,
                else loopback if the rendezvous is on this machine, else what the backends choose.
            backend: "gloo", or "nccl" with gloo beside it. "auto" is the latter where the ranks compute on CUDA.
            key: What the ranks share and nobody else knows. With it no object is unpickled that another has sent; the
                tensors that travel are not proved. Empty: whatever reaches the ports of the ranks is taken for one.

        Raises:
            RankGroupError: The others did not come in time, or this process has a default process group already.
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
        """What connects the ranks. Hold on to it no longer than until `on_release` calls.

        Raises:
            RankGroupError: There is none: a single rank, or the group is closed.
        """
        if self._group is None:
            raise RankGroupError(f"The group of this replica's ranks is of no further use: {self._broken or 'alone'}.")
        return self._group

    def split(self, parts: Sequence[Sequence[int]]) -> RankGroup:
        """Return the group of the ranks that are in one part with this one. It ends with this group.

        Args:
            parts: All ranks, each in one part, ascending. The same on all ranks, and all must call. The same parts
                give the same group again.

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
        """Call `release` when the group ends: it lets go of what refers to the process groups of the parts.

        Connections are closed when nothing refers to them any more, and not before.
        """
        self._releases.append(release)

    def agree(self, value: float) -> float:
        """Return the largest `value` of all ranks.

        Raises:
            RankGroupError: A rank is gone or did not answer in time.
        """
        return self.agree_all("agree", [value])[0]

    def agree_all(self, purpose: str, values: Sequence[float]) -> list[float]:
        """Return the largest of each value over all ranks, in one exchange.

        Args:
            purpose: What it is about, the same on all ranks: by this, ranks that have lost step notice.
            values: At most 6.

        Raises:
            RankGroupError: A rank is gone, did not answer in time, or was there for another purpose.
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
        """Return rank 0's `value`, which must pickle.

        Raises:
            TypeError: It does not pickle. All ranks raise.
            RankGroupError: A rank is gone or did not answer in time, or what came is not from a rank.
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
        """Return the `value` of each rank. Those that do not pickle arrive as None.

        Raises:
            RankGroupError: A rank is gone, did not answer in time, or has lost step, or what came is not from a rank.
        """
        if self.world_size == 1:
            return [value]
        self.agree_all("gather objects", [])
        return self._gather_objects(value)

    def rows_buffer(self, tensor: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Return the memory that `all_gather_rows` of the same arguments needs, on the tensor's device."""
        return tensor.new_empty(self.world_size * max(counts), *tensor.shape[1:])

    def all_gather_rows(
        self, tensor: torch.Tensor, counts: Sequence[int], buffer: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the rows of all ranks, in the order of the ranks.

        Args:
            tensor: This rank's, `[counts[rank], ...]`; dtype and the further dimensions are the same on all ranks.
            counts: Rows of each rank.
            buffer: What `rows_buffer` gave. With it, nothing is allocated before all ranks have what they need, so
                no rank can run out of memory while the others wait for it.

        Returns:
            `[sum(counts), ...]`, dtype and device of `tensor`.

        Raises:
            RankGroupError: A rank is gone or did not answer in time.
        """
        if self.world_size == 1:
            return tensor
        if buffer is None:
            buffer = self.rows_buffer(tensor, counts)
        most = max(counts)
        mine = buffer[self.rank * most : (self.rank + 1) * most]
        mine[: counts[self.rank]] = tensor
        # As bytes: not every backend knows every dtype.
        sent, received = mine.view(-1).view(torch.uint8), buffer.view(-1).view(torch.uint8)
        if received.numel():
            self._communicate(lambda group: all_gather(received, sent, group))
        if min(counts) == most:
            return buffer
        return torch.cat([buffer[rank * most : rank * most + count] for rank, count in enumerate(counts)])

    def abort(self) -> None:
        """Let go of the others without a word; those that wait for this rank get an error at once. For faults."""
        self._broken = self._broken or "it was aborted"
        self.close()

    def close(self) -> None:
        """Let go of the others. Waits for nobody, and is harmless when called twice."""
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
