"""Cutting a call by rows and putting the outputs together: pure, with the ranks played one after another."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni_core.worker.parallel.batch_split import (
    BatchSplit,
    NotSplitError,
    OutputPart,
    candidate_splits,
    gather_entries,
    row_counts,
)
from omni_core.worker.stacking.call import DenoiserCall
from omni_core.worker.stacking.difference import difference
from omni_core.worker.stacking.object_numbers import ObjectNumbers
from worker.test_stacking import TREES, Output, Toy, assert_same_tree, fill


def run_in_parts(split: BatchSplit, call: DenoiserCall, world_size: int) -> Any:
    """Do what the ranks do."""
    counts = row_counts(call.rows, world_size)
    parts = []
    for rank, count in enumerate(counts):
        start = sum(counts[:rank])
        args, kwargs = split.part(call, start, start + count)
        parts.append(OutputPart.of(call.module(*args, **kwargs), count, call.takes_list))
    if len({part.signature for part in parts}) > 1:
        raise NotSplitError("the parts of the output do not fit together")
    matrices = [torch.cat(pieces) for pieces in zip(*(part.matrices() for part in parts), strict=True)]
    lists = [[entry for entries in each for entry in entries] for each in zip(*(p.lists for p in parts), strict=True)]
    return parts[0].whole(matrices, lists)


def first_right(call: DenoiserCall, world_size: int, whole: Any) -> BatchSplit | None:
    for split, described in candidate_splits(call):
        try:
            if difference(run_in_parts(split, described, world_size), whole) <= 1.0:
                return split
        except Exception:  # as in BatchParallel: the next may be right
            continue
    return None


@given(st.integers(1, 1000), st.integers(1, 64))
def test_rows_are_dealt_out_evenly(rows: int, world_size: int) -> None:
    counts = row_counts(rows, world_size)
    assert len(counts) == world_size
    assert sum(counts) == rows
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@given(TREES, st.integers(2, 6), st.integers(2, 4), st.integers(0, 2**20))
def test_a_row_wise_denoiser_is_split_and_equal(tree: Any, rows: int, world_size: int, seed: int) -> None:
    def compute(hidden_states: torch.Tensor, extra: Any) -> Any:
        total = hidden_states.clone()
        for leaf in torch.utils._pytree.tree_leaves(extra):
            if not isinstance(leaf, torch.Tensor):
                continue
            if leaf.ndim < 2:
                total = total + leaf.reshape(-1, 1)
            elif leaf.shape == (7, 2):
                total = total * leaf.sum()
            else:
                total = total + leaf.reshape(len(hidden_states), -1).sum(1, keepdim=True)
        return Output(sample=(total, [total.double() * 2, (total > 1).repeat_interleave(3, 0), None]))

    world_size = min(world_size, rows)
    generator = torch.Generator().manual_seed(seed)
    extra = fill(tree, rows, generator)
    call = DenoiserCall.describe(Toy(compute), (torch.rand(rows, 2, generator=generator), extra), {}, False)
    split = first_right(call, world_size, call.module(*call.args))
    assert split is not None
    described = DenoiserCall.describe(call.module, call.args, {}, split.row_lists)
    assert_same_tree(run_in_parts(split, described, world_size), call.module(*call.args))


@given(st.integers(2, 5), st.integers(2, 3), st.integers(1, 4))
def test_lists_with_an_entry_per_row_of_any_shape(rows: int, world_size: int, length: int) -> None:
    world_size = min(world_size, rows)
    entries = [torch.rand(2, length + index) for index in range(rows)]
    module = Toy(lambda x, t: Output(sample=[one * time for one, time in zip(x, t, strict=True)]))
    call = DenoiserCall.describe(module, (entries, torch.rand(rows)), {}, False)
    split = first_right(call, world_size, module(*call.args))
    assert split is not None
    assert split.row_lists


@given(st.lists(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=3), min_size=1, max_size=3))
def test_entries_are_gathered_whatever_their_shapes(shapes: list[list[list[int]]]) -> None:
    by_rank = [[torch.rand(shape) for shape in of_rank] for of_rank in shapes]
    flat = torch.cat([entry.reshape(-1) for entries in by_rank for entry in entries])
    sizes = [sum(entry.numel() for entry in entries) for entries in by_rank]
    for entries in by_rank:

        def gather_rows(tensor: torch.Tensor, counts: Any, entries: Any = entries) -> torch.Tensor:
            assert list(counts) == sizes
            assert len(tensor) == sum(entry.numel() for entry in entries)
            return flat

        found = gather_entries(
            entries, lambda _: [[tuple(e.shape) for e in of_rank] for of_rank in by_rank], gather_rows
        )
        for one, other in zip(found, [entry for of_rank in by_rank for entry in of_rank], strict=True):
            assert torch.equal(one, other)


def thirds(x: torch.Tensor) -> torch.Tensor:
    plain, text, perturbed = x.chunk(3)
    return torch.cat([plain, text + plain.mean(), perturbed * 2])


@pytest.mark.parametrize(
    "compute",
    [
        thirds,
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: x.flip(0),
        lambda x: x.cumsum(0),
        lambda x: x.mean(),
        lambda x: (x, torch.ones(7)),
        lambda x: x if len(x) == 6 else x[99],
        lambda x: x[:, : len(x)],
    ],
)
def test_a_denoiser_that_mixes_rows_has_no_right_split(compute: Callable[..., Any]) -> None:
    call = DenoiserCall.describe(Toy(compute), (torch.rand(6, 9),), {}, False)
    assert first_right(call, 2, call.module(*call.args)) is None


def test_a_table_as_long_as_a_multiple_of_the_rows_is_found_out() -> None:
    module = Toy(lambda x, table, per_frame: x * table.sum() + per_frame.reshape(len(x), -1).sum(1, keepdim=True))
    call = DenoiserCall.describe(module, (torch.rand(2, 3), torch.rand(8, 2), torch.rand(6, 2, 2)), {}, False)
    split = first_right(call, 2, module(*call.args))
    assert split is not None
    assert split.by_rows == {0, 2}


def test_an_output_that_cannot_be_looked_into_has_no_right_split() -> None:
    module = Toy(lambda x: SimpleNamespace(sample=x))
    call = DenoiserCall.describe(module, (torch.rand(3, 2),), {}, False)
    assert first_right(call, 2, module(*call.args)) is None


@pytest.mark.parametrize(("value", "is_right"), [(None, True), ("text", True), (3, True), (SimpleNamespace(), False)])
def test_what_is_no_tensor_must_be_equal(value: Any, is_right: bool) -> None:
    assert (difference((torch.ones(2), value), (torch.ones(2), copy.copy(value))) <= 1.0) == is_right
    assert difference((torch.ones(2), value), (torch.ones(2), "other")) == math.inf
    assert difference(value, value) == 0.0


class Thing:
    pass


def test_numbers_are_never_used_again() -> None:
    numbers = ObjectNumbers()
    one, other = Thing(), Thing()
    assert numbers.number(one) == numbers.number(one) != numbers.number(other)
    seen = {numbers.number(one), numbers.number(other)}
    for _ in range(100):  # CPython puts each where the last one was
        thing = Thing()
        number = numbers.number(thing)
        assert number not in seen
        seen.add(number)
        del thing
    assert len(numbers) == 2
    assert numbers.number(object()) is None
