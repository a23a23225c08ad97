"""Blocks are reused, never while somebody holds them, and cost no file and no memory when they are gone."""

from __future__ import annotations

import errno
import gc
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_core.wire.shared_memory import (
    Block,
    BlockPool,
    BlockViews,
    Bytes,
    block_size,
    make_memory,
    map_memory,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux only")

MB = 1 << 20


def num_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def num_mappings() -> int:
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("/memfd:omni")


def resident_kb(memory: Bytes) -> int:
    """Return how much of a mapping is there, as the kernel counts it."""
    start = f"{memory.ctypes.data:x}-"
    lines = iter(Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(start):
            return next(int(row.split()[1]) for row in lines if row.startswith("Rss:"))
    raise AssertionError("it is not mapped")


def take(pool: BlockPool, nbytes: int) -> Block:
    block = pool.take(nbytes)
    assert block is not None
    return block


@given(st.integers(1, 1 << 40))
def test_a_block_has_room_and_wastes_little(nbytes: int) -> None:
    size = block_size(nbytes)
    assert size >= nbytes
    assert size % 4096 == 0
    assert size <= max(1 << 16, nbytes * 1.125 + 4096)
    assert block_size(size) == size


def test_memory_is_there_before_its_first_use_and_in_both_mappings() -> None:
    fd, memory = make_memory(4 * MB)
    other = map_memory(fd, 4 * MB)
    os.close(fd)
    assert resident_kb(memory) == 4096
    assert resident_kb(other) == 4096
    memory[:] = 7
    assert other[-1] == 7
    assert memory.ctypes.data != other.ctypes.data


def test_mapped_memory_needs_no_open_file_and_goes_with_its_last_reference() -> None:
    files, mappings = num_files(), num_mappings()
    blocks = []
    for _ in range(20):
        fd, memory = make_memory(1 << 16)
        os.close(fd)
        blocks.append(memory)
    assert num_files() == files
    assert num_mappings() == mappings + 20
    cut = blocks[0][10:20]
    del blocks, memory
    gc.collect()
    assert num_mappings() == mappings + 1
    assert cut.sum() == 0
    del cut
    gc.collect()
    assert num_mappings() == mappings


def test_too_much_is_an_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    files, mappings = num_files(), num_mappings()

    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        make_memory(MB)
    monkeypatch.undo()
    with pytest.raises(OSError, match="cannot map"):
        map_memory(-1, MB)
    assert (num_files(), num_mappings()) == (files, mappings)


def test_without_memfd_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert BlockPool(MB).take(1000) is None


def test_what_came_back_is_used_again_and_nothing_else() -> None:
    pool = BlockPool(64 * MB)
    first, second = take(pool, MB), take(pool, MB)
    assert first.number != second.number
    pool.give_back(first.number)
    assert take(pool, MB - 100) is first
    assert take(pool, MB).number not in (first.number, second.number)
    assert take(pool, 2 * MB).number != second.number
    pool.close()


def test_a_number_that_is_not_out_changes_nothing() -> None:
    pool = BlockPool(64 * MB)
    block = take(pool, MB)
    pool.give_back(block.number)
    pool.give_back(block.number)
    pool.give_back(12345)
    assert take(pool, MB) is block
    assert take(pool, MB) is not block
    pool.close()


def test_the_limit_holds_and_idle_blocks_make_room() -> None:
    pool = BlockPool(4 * MB)
    first, second = take(pool, 2 * MB), take(pool, 2 * MB)
    assert pool.take(1) is None
    pool.give_back(first.number)
    assert pool.take(3 * MB) is None
    assert pool.retired == []  # it would not have fitted all the same, so nothing was given up for it
    assert take(pool, MB).number not in (first.number, second.number)
    assert pool.retired == [first.number]
    assert pool.num_bytes == 3 * MB
    pool.close()


def test_a_block_that_is_given_up_frees_its_pages_at_once() -> None:
    pool = BlockPool(4 * MB)
    block = take(pool, 4 * MB)
    assert block.fd is not None
    theirs = map_memory(block.fd, 4 * MB)  # as in the process that has not heard of it yet
    memory = block.memory
    memory[:] = 1
    pool.give_back(block.number)
    take(pool, MB)
    assert resident_kb(memory) == 0
    assert resident_kb(theirs) == 0
    pool.close()


def test_few_idle_blocks_are_kept() -> None:
    made: list[int] = []

    def make(size: int) -> tuple[int, Bytes]:
        made.append(size)
        return os.open(os.devnull, os.O_RDONLY), np.zeros(size, dtype=np.uint8)

    pool = BlockPool(1 << 40, make)
    blocks = [take(pool, 1 << 16) for _ in range(300)]
    for block in blocks:
        pool.give_back(block.number)
    assert pool.retired == [block.number for block in blocks[:44]]
    big = [take(pool, 192 * MB) for _ in range(2)]
    for block in big:
        pool.give_back(block.number)
    assert pool.retired[44:][-1] == big[0].number  # two of them are too much, so all older ones had to go
    assert pool.num_bytes == 192 * MB
    assert pool.num_in_use == 0
    pool.close()


def test_memory_that_cannot_be_made_is_no_block() -> None:
    def full(size: int) -> tuple[int, Bytes]:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    pool = BlockPool(MB, full)
    assert pool.take(1000) is None
    assert (pool.num_bytes, pool.num_in_use) == (0, 0)


@pytest.mark.parametrize(
    "derive",
    [
        lambda view: view[100:200],
        lambda view: view.reshape(64, -1)[3:5].view(np.float32),
        lambda view: memoryview(view)[5:],
        lambda view: np.frombuffer(view, dtype=np.int64)[1:],
    ],
    ids=["slice", "reshaped", "memoryview", "frombuffer"],
)
def test_whatever_is_cut_from_a_view_keeps_its_block(derive: Any) -> None:
    released: list[int] = []
    views = BlockViews(released.append)
    fd, memory = make_memory(1 << 16)
    memory[:] = 1
    views.add(9, fd)
    part = derive(views.view(9, 1 << 16))
    gc.collect()
    assert released == []
    del part
    gc.collect()
    assert released == [9]


def test_a_view_of_torch_keeps_its_block() -> None:
    torch = pytest.importorskip("torch")
    released: list[int] = []
    views = BlockViews(released.append)
    views.add(3, make_memory(1 << 16)[0])
    tensor = torch.frombuffer(views.view(3, 4096), dtype=torch.uint8).view(torch.bfloat16)[7:]
    gc.collect()
    assert released == []
    del tensor
    gc.collect()
    assert released == [3]


def test_views_outlive_the_channel_and_blocks_are_bounded() -> None:
    mappings = num_mappings()
    views = BlockViews(lambda number: None)
    fd, memory = make_memory(1 << 16)
    views.add(1, fd)
    memory[:] = 5
    view = views.view(1, 100)
    with pytest.raises(ValueError, match="buffer"):
        views.view(1, (1 << 16) + 1)
    views.close()
    with pytest.raises(KeyError):
        views.view(1, 1)
    assert view.sum() == 500
    del view, memory
    gc.collect()
    assert num_mappings() == mappings
