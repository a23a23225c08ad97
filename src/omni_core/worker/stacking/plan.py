"""Stacks several denoiser calls into one, and splits its result.

Nothing here knows a model. How an argument is stacked is tried and verified (see `verify.py`), because the shape alone
does not tell: the rotary table of Flux, `[tokens, dim]`, has no rows, and the prompt embeddings of AnimateDiff are
`[rows * frames, tokens, dim]`.
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
    """These calls cannot be stacked. Never leaves the worker."""


class UnequalTablesError(NotStackableError):
    """These calls have different tensors without rows. Other calls of the kind may be stacked."""


class EqualTensors:
    """Compares tensors, and caches which are equal: the same tensors come again at every step.

    A comparison on a GPU would wait for the GPU each time.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[int, int], ...], list[weakref.ref[torch.Tensor]]] = {}

    def are_equal(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether all tensors have equal values. All have the same shape."""
        if any(tensor.is_inference() for tensor in tensors):  # without version counters a change cannot be seen
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
        row_lists: Whether lists with one entry per row, `[rows]`, are concatenated.
        shared: Positions of the leaves without rows: they must be equal, and one of them is used for all calls.
    """

    row_lists: bool = False
    shared: frozenset[int] = frozenset()
    _equal: EqualTensors = field(default_factory=EqualTensors)

    def stack(self, calls: Sequence[DenoiserCall]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the stacked call.

        Tensors `[n * rows, ...]` become `[n * total, ...]`, and scalars `[]`, `[1]` or `[rows]` become `[total]`, where
        `total` is the sum of the rows of all calls.

        Args:
            calls: Calls of one kind.

        Raises:
            UnequalTablesError: The shared leaves differ.
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
        """Whether the shared leaves are equal in all `calls`."""
        return all(self._equal.are_equal([call.leaves[position] for call in calls]) for position in self.shared)


def candidate_plans(calls: Sequence[DenoiserCall]) -> list[tuple[StackingPlan, list[DenoiserCall]]]:
    """Return the possible plans for `calls`, the most likely first, each with the calls described for it."""
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
    """Split the output of a stacked call into the outputs of the calls.

    Args:
        output: The output of the denoiser: tensors `[n * total, ...]` in any structure that pytree knows, where `total`
            is the sum of `rows`.
        rows: Number of rows of each call.
        row_lists: Whether lists of `total` tensors hold one entry per row, as for a denoiser whose input is such a
            list. For other denoisers they hold one entry per layer.

    Returns:
        The output of each call, with tensors `[n * rows, ...]`.

    Raises:
        NotStackableError: The leading dimension of a tensor is not a multiple of `total`.
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
