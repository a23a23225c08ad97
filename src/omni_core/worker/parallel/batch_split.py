"""Splits one denoiser call by rows, and joins the parts of its output.

Nothing here knows a model. Which arguments have rows is tried and verified (see `batch_parallel.py`), because the
shapes alone do not tell.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from omni_core.worker.stacking.call import DenoiserCall, RowList, is_row_scalar


class NotSplitError(Exception):
    """This call cannot be split by rows. Never leaves the worker."""


def row_counts(rows: int, world_size: int) -> list[int]:
    """Return the number of rows of each rank, `[world_size]`: as even as possible, the first ranks get one more."""
    least, more = divmod(rows, world_size)
    return [least + (rank < more) for rank in range(world_size)]


@dataclass(frozen=True, slots=True)
class BatchSplit:
    """How to split the calls of one kind.

    Attributes:
        row_lists: Whether lists with one entry per row, `[rows]`, are split.
        by_rows: Positions of the tensors that are split, `[n * rows, ...]`. Each part gets the other tensors whole.
    """

    row_lists: bool
    by_rows: frozenset[int]

    def part(self, call: DenoiserCall, start: int, stop: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call for the rows `start:stop`. Tensors are views, `[n * (stop - start), ...]`.

        Args:
            call: The whole call, described with row lists if this split has them.
            start: First row.
            stop: Row after the last one.
        """
        leaves: list[Any] = []
        for position, leaf in enumerate(call.leaves):
            if isinstance(leaf, RowList):
                leaves.append(list(leaf[start:stop]))
            elif position in self.by_rows:
                per_row = leaf.shape[0] // call.rows
                leaves.append(leaf[start * per_row : stop * per_row])
            else:
                leaves.append(leaf)
        args, kwargs = pytree.tree_unflatten(leaves, call.spec)
        return args, kwargs


def candidate_splits(call: DenoiserCall) -> list[tuple[BatchSplit, DenoiserCall]]:
    """Return the possible splits, the most likely first, each with the call described for it."""
    found: list[tuple[BatchSplit, DenoiserCall]] = []
    # If the input is a list, its tensors are the rows.
    for row_lists in (True,) if call.takes_list else (False, True):
        described = DenoiserCall.describe(call.module, call.args, call.kwargs, row_lists)
        if row_lists and not any(isinstance(leaf, RowList) for leaf in described.leaves):
            continue
        tensors = {place: leaf for place, leaf in enumerate(described.leaves) if isinstance(leaf, torch.Tensor)}
        rows = described.rows
        certain = {place for place, leaf in tensors.items() if leaf.ndim > 0 and leaf.shape[0] == rows}
        # `[rows * frames, ...]`, or a table whose length is a multiple of the rows by chance.
        doubtful = {
            place
            for place, leaf in tensors.items()
            if not is_row_scalar(leaf, rows) and place not in certain and leaf.shape[0] % rows == 0 and leaf.shape[0]
        }
        not_tables = {place for place in doubtful if tensors[place].ndim > 2}
        for more in dict.fromkeys(map(frozenset, (doubtful, set[int](), not_tables))):
            found.append((BatchSplit(row_lists, frozenset(certain | more)), described))
    return found


@dataclass(frozen=True, slots=True)
class OutputPart:
    """The output of a denoiser for a part of the rows.

    Attributes:
        rows: Number of rows of the part.
        leaves: The leaves: tensors `[n * rows, ...]`; a list of tensors with one entry per row is one leaf.
        spec: The structure.
    """

    rows: int
    leaves: list[Any]
    spec: Any

    @classmethod
    def of(cls, output: Any, rows: int, row_lists: bool) -> OutputPart:
        """Flatten an output.

        Args:
            output: The output of the denoiser: tensors `[n * rows, ...]` in any structure that pytree knows.
            rows: Number of rows of the part.
            row_lists: Whether lists of `rows` tensors hold one entry per row.

        Raises:
            NotSplitError: The leading dimension of a tensor is not a multiple of `rows`.
        """

        def has_entry_per_row(value: Any) -> bool:
            return type(value) is list and len(value) == rows and all(isinstance(item, torch.Tensor) for item in value)

        leaves, spec = pytree.tree_flatten(output, is_leaf=has_entry_per_row if row_lists else None)
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor) and (leaf.ndim == 0 or leaf.shape[0] % rows):
                raise NotSplitError("the output has a tensor without rows")
        return cls(rows, leaves, spec)

    @property
    def signature(self) -> int:
        """A checksum of shapes per row and dtypes: equal in all processes whose parts fit together."""
        described = [
            (self._per_row(leaf), str(leaf.dtype)) if isinstance(leaf, torch.Tensor) else type(leaf).__name__
            for leaf in self.leaves
        ]
        return zlib.crc32(repr(described).encode())

    @property
    def lists(self) -> list[list[torch.Tensor]]:
        """The lists with one entry per row, `[rows]`."""
        return [leaf for leaf in self.leaves if isinstance(leaf, list)]

    def matrices(self) -> list[torch.Tensor]:
        """Return all tensors as one matrix `[rows, numbers per row]` for each dtype and device."""
        groups: dict[Any, list[torch.Tensor]] = {}
        for leaf in self._tensors():
            groups.setdefault((leaf.dtype, leaf.device), []).append(leaf.reshape(self.rows, -1))
        return [parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for parts in groups.values()]

    def whole(self, matrices: Sequence[torch.Tensor], lists: Sequence[list[torch.Tensor]]) -> Any:
        """Return the output for all rows, with tensors `[n * all rows, ...]`.

        Args:
            matrices: The matrices of `matrices()` with the rows of all parts, `[all rows, numbers per row]`.
            lists: The lists of `lists` with the entries of all parts, `[all rows]`.
        """
        columns: dict[Any, int] = {}
        by_kind = {(matrix.dtype, matrix.device): matrix for matrix in matrices}

        def tensor(leaf: torch.Tensor) -> torch.Tensor:
            kind = (leaf.dtype, leaf.device)
            per_row, *trailing = self._per_row(leaf)
            begin = columns.get(kind, 0)
            columns[kind] = begin + leaf.numel() // self.rows
            matrix = by_kind[kind]
            return matrix[:, begin : columns[kind]].reshape(len(matrix) * per_row, *trailing)

        entries = iter(lists)
        leaves = [
            tensor(leaf) if isinstance(leaf, torch.Tensor) else next(entries) if isinstance(leaf, list) else leaf
            for leaf in self.leaves
        ]
        return pytree.tree_unflatten(leaves, self.spec)

    def _tensors(self) -> list[torch.Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]

    def _per_row(self, leaf: torch.Tensor) -> tuple[int, ...]:
        return (leaf.shape[0] // self.rows, *leaf.shape[1:])


# Takes the value of this rank, returns the values of all, by rank.
GatherObjects = Callable[[Any], list[Any]]
# Takes the rows of this rank and the number of rows of each rank, returns the rows of all.
GatherRows = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


def gather_entries(
    entries: Sequence[torch.Tensor], gather_objects: GatherObjects, gather_rows: GatherRows
) -> list[torch.Tensor]:
    """Return the entries of the lists of all ranks. Their shapes may differ; all have the same dtype."""
    shapes: list[list[tuple[int, ...]]] = gather_objects([tuple(entry.shape) for entry in entries])
    sizes = [[torch.Size(shape).numel() for shape in of_rank] for of_rank in shapes]
    flat = gather_rows(torch.cat([entry.reshape(-1) for entry in entries]), [sum(of_rank) for of_rank in sizes])
    pieces = torch.split(flat, [size for of_rank in sizes for size in of_rank])
    every = [shape for of_rank in shapes for shape in of_rank]
    return [piece.reshape(shape) for piece, shape in zip(pieces, every, strict=True)]
