"""Making one denoiser call of several, and the several results of its one.

Nothing here knows a model. How an argument is put together is tried out and checked (see `verify.py`), because its
shape alone does not tell: the rotary table of Flux has a leading dimension that is no row, and the prompt embeddings
of AnimateDiff have one that is rows times frames.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from omni_core.worker.stacking.call import DenoiserCall, RowList, is_row_scalar


class NotStackableError(Exception):
    """These calls cannot be one. Never leaves the worker."""


class UnequalTablesError(NotStackableError):
    """These calls cannot share their tensors without rows. Others of their kind may."""


class EqualTensors:
    """Compares tensors, and remembers which were equal: the same ones come back at every step.

    Comparing them on a GPU would wait for it each time.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[int, int], ...], list[weakref.ref[torch.Tensor]]] = {}

    def are_equal(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether all tensors hold the same."""
        if any(tensor.is_inference() for tensor in tensors):  # they count no versions: nobody sees that one has changed
            return all(tensor is tensors[0] or torch.equal(tensor, tensors[0]) for tensor in tensors)
        key = tuple((id(tensor), tensor._version) for tensor in tensors)
        known = self._known.get(key)
        if known is not None and all(ref() is tensor for ref, tensor in zip(known, tensors, strict=True)):
            return True
        if not all(tensor is tensors[0] or torch.equal(tensor, tensors[0]) for tensor in tensors):
            return False
        if len(self._known) > 1000:
            self._known.clear()
        self._known[key] = [weakref.ref(tensor) for tensor in tensors]
        return True


@dataclass(slots=True)
class StackingPlan:
    """How to stack the calls of one kind.

    Attributes:
        row_lists: Whether lists with one entry per row are put together entry by entry.
        shared: Positions of the leaves whose leading dimension is no row: they must be equal, and one serves all.
    """

    row_lists: bool = False
    shared: frozenset[int] = frozenset()
    _equal: EqualTensors = field(default_factory=EqualTensors)

    def stack(self, calls: Sequence[DenoiserCall]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of one call that does the work of all `calls`, which are of one kind.

        Raises:
            UnequalTablesError: Leaves that would be shared differ.
        """
        rows = [call.rows for call in calls]
        stacked: list[Any] = []
        for position, first in enumerate(calls[0].leaves):
            leaves = [call.leaves[position] for call in calls]
            if isinstance(first, RowList):
                stacked.append([entry for leaf in leaves for entry in leaf])
            elif not isinstance(first, torch.Tensor):
                stacked.append(first)
            elif all(is_row_scalar(leaf, count) for leaf, count in zip(leaves, rows, strict=True)):
                stacked.append(torch.cat([leaf.expand(count) for leaf, count in zip(leaves, rows, strict=True)]))
            elif position in self.shared:
                if not self._equal.are_equal(leaves):
                    raise UnequalTablesError("tensors without rows differ between the requests")
                stacked.append(first)
            else:
                stacked.append(torch.cat(leaves))
        args, kwargs = pytree.tree_unflatten(stacked, calls[0].spec)
        return args, kwargs

    def can_share(self, calls: Sequence[DenoiserCall]) -> bool:
        """Whether the leaves that would be shared are equal in all `calls`."""
        return all(self._equal.are_equal([call.leaves[position] for call in calls]) for position in self.shared)


def candidate_plans(calls: Sequence[DenoiserCall]) -> list[tuple[StackingPlan, list[DenoiserCall]]]:
    """Return the plans that are worth trying for `calls`, the likeliest first, each with the calls described for it."""
    plans: list[tuple[StackingPlan, list[DenoiserCall]]] = []
    for row_lists in (False, True):
        described = [DenoiserCall.describe(call.module, call.args, call.kwargs, row_lists) for call in calls]
        first = described[0]
        if any(call.kind != first.kind or call.values != first.values for call in described):
            continue
        if row_lists and not any(isinstance(leaf, RowList) for leaf in first.leaves):
            continue
        doubtful = [
            position
            for position, leaf in enumerate(first.leaves)
            if isinstance(leaf, torch.Tensor) and not is_row_scalar(leaf, first.rows) and leaf.shape[0] != first.rows
        ]
        same_shape = [
            position
            for position in doubtful
            if all(call.leaves[position].shape == first.leaves[position].shape for call in described)
        ]
        equal = [
            position
            for position in same_shape
            if all(torch.equal(call.leaves[position], first.leaves[position]) for call in described)
        ]
        for shared in dict.fromkeys([frozenset[int](), frozenset(same_shape), frozenset(equal)]):
            plans.append((StackingPlan(row_lists, shared), described))
    return plans


def split(output: Any, rows: Sequence[int], row_lists: bool = False) -> list[Any]:
    """Return the part of a stacked call's output that belongs to each of the calls.

    Args:
        output: What the denoiser returned: tensors, nested in whatever pytree knows.
        rows: Number of rows of each call.
        row_lists: Whether lists of tensors with as many entries as there are rows hold one entry per row, as those
            of a denoiser do that takes its input as such a list. Elsewhere they hold one entry per layer.

    Raises:
        NotStackableError: A tensor's leading dimension is not in proportion to the rows.
    """
    total = sum(rows)

    def has_entry_per_row(value: Any) -> bool:
        return type(value) is list and len(value) == total and all(isinstance(item, torch.Tensor) for item in value)

    leaves, spec = pytree.tree_flatten(output, is_leaf=has_entry_per_row if row_lists else None)
    parts: list[list[Any]] = [[] for _ in rows]
    for leaf in leaves:
        pieces: Sequence[Any] = [leaf] * len(rows)
        if isinstance(leaf, list):
            entries = iter(leaf)
            pieces = [[next(entries) for _ in range(count)] for count in rows]
        elif isinstance(leaf, torch.Tensor):
            if leaf.ndim == 0 or leaf.shape[0] % total:
                raise NotStackableError("the output has a tensor without rows")
            pieces = torch.split(leaf, [leaf.shape[0] // total * count for count in rows])
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return [pytree.tree_unflatten(part, spec) for part in parts]
