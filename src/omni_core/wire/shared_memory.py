"""Blocks of memory that two processes share, reused from message to message.

Blocks are memfds, files without a name: nothing remains in /dev/shm when a process is killed, and its size does not
limit them. The sender creates a block and sends its file descriptor once; both sides keep it mapped. The receiver gets
views of it. When the last view is freed, the number of the block goes back to the sender.
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

# Limits of unused blocks that are kept; beyond them the oldest are retired.
_MOST_IDLE_BYTES = 256 << 20
_MOST_IDLE_BLOCKS = 256
_SMALLEST_BLOCK = 1 << 16
_MAP_FAILED = ctypes.c_void_p(-1).value
_MADV_REMOVE = 9


@dataclass(slots=True)
class Block:
    """A piece of shared memory.

    Attributes:
        number: Identifies the block on both sides.
        memory: Its bytes, `[size]`.
        fd: Its file descriptor until it was sent; then None.
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
    """Create shared memory. Return its file descriptor and its bytes, all of them allocated.

    Raises:
        OSError: The system has no memfd, or not enough memory.
    """
    if not hasattr(os, "memfd_create"):
        raise OSError("this system has no memfd")
    fd = os.memfd_create("omni", os.MFD_CLOEXEC)
    try:
        # Without enough memory it fails here, and not with a signal at the first use.
        os.posix_fallocate(fd, 0, size)
        return fd, map_memory(fd, size)
    except BaseException:
        os.close(fd)
        raise


def map_memory(fd: int, size: int) -> Bytes:
    """Map a file, pre-faulted, and return its bytes. They stay mapped as long as they are referenced.

    Python's mmap is not used: until 3.13 it keeps a file descriptor open for each mapping, so that a program with a
    thousand results would run out of file descriptors.

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
    """Round `nbytes` up to a block size. Steps are an eighth or less, so that blocks can be reused."""
    if nbytes <= _SMALLEST_BLOCK:
        return _SMALLEST_BLOCK
    step = 1 << max(12, (nbytes - 1).bit_length() - 4)
    return -(-nbytes // step) * step


class BlockPool:
    """The blocks of the sending side. One thread at a time may use it.

    Args:
        limit_bytes: Maximum memory of all blocks.
        make: Creates memory; raises OSError if it cannot.

    Attributes:
        retired: Numbers of retired blocks, to be sent to the other side so that it unmaps them.
    """

    def __init__(self, limit_bytes: int, make: Callable[[int], tuple[int, Bytes]] = make_memory) -> None:
        self.retired: list[int] = []
        self._limit = limit_bytes
        self._make = make
        self._numbers = 0
        self._bytes = 0
        self._idle_bytes = 0
        self._in_use: dict[int, Block] = {}
        # The block used last is at the end, and is reused first.
        self._idle: list[Block] = []

    @property
    def num_bytes(self) -> int:
        """Memory of all blocks, in bytes."""
        return self._bytes

    @property
    def num_in_use(self) -> int:
        """Number of blocks that the other side has not given back."""
        return len(self._in_use)

    def has_room(self, nbytes: int, number: int) -> bool:
        """Whether there is memory for `nbytes` in `number` blocks, even if rounding doubles the sizes."""
        return number < _MOST_IDLE_BLOCKS // 2 and 2 * nbytes + self._bytes - self._idle_bytes <= self._limit

    def take(self, nbytes: int) -> Block | None:
        """Return a block of at least `nbytes`; None if there is no memory for it."""
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
        """Take back a block that the other side has released."""
        block = self._in_use.pop(number, None)
        if block is None:
            return
        self._idle.append(block)
        self._idle_bytes += len(block.memory)
        while len(self._idle) > 1 and (self._idle_bytes > _MOST_IDLE_BYTES or len(self._idle) > _MOST_IDLE_BLOCKS):
            self._retire_oldest()

    def close(self) -> None:
        """Release all blocks."""
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
        # The other side keeps it mapped until it gets the number; the pages are freed now.
        _libc().madvise(block.memory.ctypes.data, size, _MADV_REMOVE)


class BlockViews:
    """The blocks of the receiving side.

    Args:
        on_released: Called with the number of a block whose last view was freed, in any thread.
    """

    def __init__(self, on_released: Callable[[int], Any]) -> None:
        self._on_released = on_released
        self._blocks: dict[int, Bytes] = {}

    def add(self, number: int, fd: int) -> None:
        """Map a new block, and close its file descriptor."""
        try:
            self._blocks[number] = map_memory(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def view(self, number: int, nbytes: int) -> Bytes:
        """Return a view of the first bytes of a block, `[nbytes]`. The block is given back when the view is freed.

        Raises:
            KeyError: There is no such block.
            ValueError: The block is smaller.
        """
        # From a memoryview: a slice of a numpy array references the base of the array, and slices of this view must
        # keep the view alive, not only the block.
        view = np.frombuffer(self._blocks[number].data, dtype=np.uint8, count=nbytes)
        weakref.finalize(view, self._on_released, number).atexit = False
        return view

    def drop(self, number: int) -> None:
        """Forget a block that the sender has retired."""
        self._blocks.pop(number, None)

    def close(self) -> None:
        """Forget all blocks. Existing views stay valid."""
        self._blocks.clear()


def close_files(fds: MutableSequence[int]) -> None:
    """Close file descriptors, and empty the list."""
    while fds:
        os.close(fds.pop())
