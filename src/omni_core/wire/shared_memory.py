"""Blocks of memory that two processes share, reused from message to message.

They are memfds: files without a name, so nothing is left in /dev/shm when a process is killed, and its size does not
matter. A block is made by the side that sends, its file descriptor goes to the other side once, and both keep it
mapped. What the receiver makes of it is a view; when the last view is gone, the block's number goes back to the sender.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import weakref
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

# What nobody uses is kept up to these limits; above, the oldest blocks are given up.
_MOST_IDLE_BYTES = 256 << 20
_MOST_IDLE_BLOCKS = 256
_SMALLEST_BLOCK = 1 << 16
_MAP_FAILED = ctypes.c_void_p(-1).value
_MADV_REMOVE = 9


@dataclass(slots=True)
class Block:
    """A piece of shared memory.

    Attributes:
        number: By which both sides know it.
        memory: Its bytes.
        fd: Its file, until it was sent to the other side; then None.
    """

    number: int
    memory: Bytes
    fd: int | None

    def close_fd(self) -> None:
        """Close the file; the memory stays mapped."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def make_memory(size: int) -> tuple[int, Bytes]:
    """Return the file and the bytes of new shared memory, all of it there already.

    Raises:
        OSError: There is no such memory here, or not so much.
    """
    if not hasattr(os, "memfd_create"):
        raise OSError("this system has no memfd")
    fd = os.memfd_create("omni", os.MFD_CLOEXEC)
    try:
        # Fails here, and not by a signal on first use, if there is not enough.
        os.posix_fallocate(fd, 0, size)
        return fd, map_memory(fd, size)
    except BaseException:
        os.close(fd)
        raise


def map_memory(fd: int, size: int) -> Bytes:
    """Return the bytes of a file, pre-faulted. They stay mapped until nothing refers to them any more.

    Not by Python's mmap, which until 3.13 keeps a file descriptor open for as long as the memory is mapped: somebody
    who holds a thousand results would have used up what a process may open.

    Raises:
        OSError: They cannot be mapped.
    """
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    address = _libc().mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
    if address == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"{os.strerror(code)}: cannot map {size} bytes")
    memory = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(memory, _libc().munmap, address, size).atexit = False
    return np.frombuffer(memoryview(memory), dtype=np.uint8)


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_int
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, number, number, number, ctypes.c_long]
    libc.mmap.restype = ctypes.c_void_p
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, number]
    return libc


def block_size(nbytes: int) -> int:
    """Return the size of the block for `nbytes`: in steps of an eighth or less, so that blocks fit again."""
    if nbytes <= _SMALLEST_BLOCK:
        return _SMALLEST_BLOCK
    step = 1 << max(12, (nbytes - 1).bit_length() - 4)
    return -(-nbytes // step) * step


class BlockPool:
    """The blocks of the side that sends. One thread at a time may use it.

    Args:
        limit_bytes: Most memory in all blocks.
        make: Makes memory; raises OSError if it cannot.

    Attributes:
        retired: Numbers of blocks that were given up; the other side must hear of them to unmap them.
    """

    def __init__(self, limit_bytes: int, make: Callable[[int], tuple[int, Bytes]] = make_memory) -> None:
        self.retired: list[int] = []
        self._limit = limit_bytes
        self._make = make
        self._numbers = 0
        self._bytes = 0
        self._idle_bytes = 0
        self._in_use: dict[int, Block] = {}
        # The one that was used last is at the end, and is the first to be used again.
        self._idle: list[Block] = []

    @property
    def num_bytes(self) -> int:
        """Memory in all blocks."""
        return self._bytes

    @property
    def num_in_use(self) -> int:
        """Blocks that the other side has not given back."""
        return len(self._in_use)

    def has_room(self, nbytes: int, number: int) -> bool:
        """Whether there will be memory for so many bytes in so many blocks. Sizes are rounded up, to twice as much."""
        return number < _MOST_IDLE_BLOCKS // 2 and 2 * nbytes + self._bytes - self._idle_bytes <= self._limit

    def take(self, nbytes: int) -> Block | None:
        """Return a block with room for `nbytes`, or None if there is no memory for it."""
        size = block_size(nbytes)
        for index in range(len(self._idle) - 1, -1, -1):
            if len(self._idle[index].memory) == size:
                block = self._idle.pop(index)
                self._idle_bytes -= size
                self._in_use[block.number] = block
                return block
        if self._bytes - self._idle_bytes + size > self._limit:
            return None
        while self._bytes + size > self._limit:
            self._retire_oldest()
        try:
            fd, memory = self._make(size)
        except OSError:
            return None
        self._numbers += 1
        block = Block(self._numbers, memory, fd)
        self._bytes += size
        self._in_use[block.number] = block
        return block

    def give_back(self, number: int) -> None:
        """Take a block back that the other side has let go of."""
        block = self._in_use.pop(number, None)
        if block is None:
            return
        self._idle.append(block)
        self._idle_bytes += len(block.memory)
        while len(self._idle) > 1 and (self._idle_bytes > _MOST_IDLE_BYTES or len(self._idle) > _MOST_IDLE_BLOCKS):
            self._retire_oldest()

    def close(self) -> None:
        """Let go of all blocks."""
        for block in (*self._idle, *self._in_use.values()):
            block.close_fd()
        self._idle.clear()
        self._in_use.clear()
        self._bytes = self._idle_bytes = 0

    def _retire_oldest(self) -> None:
        block = self._idle.pop(0)
        block.close_fd()
        size = len(block.memory)
        self._bytes -= size
        self._idle_bytes -= size
        self.retired.append(block.number)
        # The other side has it mapped until it hears of this; the pages are free at once.
        _libc().madvise(block.memory.ctypes.data, size, _MADV_REMOVE)


class BlockViews:
    """The blocks of the side that receives.

    Args:
        on_released: Gets the number of a block whose last view is gone, in whatever thread that happens.
    """

    def __init__(self, on_released: Callable[[int], Any]) -> None:
        self._on_released = on_released
        self._blocks: dict[int, Bytes] = {}

    def add(self, number: int, fd: int) -> None:
        """Map a new block, and close its file."""
        try:
            self._blocks[number] = map_memory(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def view(self, number: int, nbytes: int) -> Bytes:
        """Return the first bytes of a block. It is given back when nothing refers to them any more.

        Raises:
            KeyError: There is no such block.
            ValueError: It is smaller.
        """
        # Over a memoryview, because numpy makes an array that is cut from another refer to that one's own base: what
        # users cut from this view must keep this view alive, and not only the block.
        view = np.frombuffer(self._blocks[number].data, dtype=np.uint8, count=nbytes)
        weakref.finalize(view, self._on_released, number).atexit = False
        return view

    def drop(self, number: int) -> None:
        """Forget a block that the sender has given up."""
        self._blocks.pop(number, None)

    def close(self) -> None:
        """Forget all blocks. Views that somebody still holds stay valid."""
        self._blocks.clear()


def close_files(fds: MutableSequence[int]) -> None:
    """Close files, and empty the list of them."""
    while fds:
        os.close(fds.pop())
