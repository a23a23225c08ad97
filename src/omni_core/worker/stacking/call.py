"""`DenoiserCall`: one call of a denoiser, described so that calls of different tasks can be compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from omni_core.error_text import described_error
from omni_core.log import get_logger
from omni_core.worker.stacking.object_numbers import ObjectNumbers

log = get_logger(__name__)

_numbers = ObjectNumbers()
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device})
# A larger structure takes so long to compare that stacking gains nothing.
_MOST_NODES = 10_000


class RowList(list[Any]):
    """A list in the arguments with one entry per row: `[rows]` (QwenImage's `img_shapes`, Z-Image's list of latents).

    pytree flattens lists by their exact type, so that this subclass is one leaf.
    """


@dataclass(slots=True)
class DenoiserCall:
    """A call of `module` with `args` and `kwargs`, flattened.

    Two calls with equal `kind` and equal `values` can be stacked if stacking of that kind was verified.

    A tensor with rows has the shape `[n * rows, ...]`; `n` is 1 except for rows times frames and the like. A scalar per
    row (a timestep) has the shape `[]`, `[1]` or `[rows]`.

    Attributes:
        module: The denoiser.
        args: Positional arguments.
        kwargs: Keyword arguments.
        rows: Leading dimension of the first argument; 0 if it has none, or if the call cannot be stacked.
        kind: What must agree: module, structure, dtypes, shapes without the rows, and values that are not tensors.
        values: The numbers among the arguments. They must agree too, but may change from step to step.
        takes_list: Whether the first argument is a list with one tensor per row.
        leaves: The leaves of the arguments.
        spec: The structure of the arguments.
    """

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int = 0
    kind: Hashable = None
    values: tuple[float | int, ...] = ()
    takes_list: bool = False
    leaves: list[Any] = field(default_factory=list)
    spec: Any = None

    @classmethod
    def describe(
        cls, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], row_lists: bool
    ) -> DenoiserCall:
        """Return the call with its description.

        Args:
            module: The denoiser.
            args: Positional arguments.
            kwargs: Keyword arguments.
            row_lists: Whether lists of length `rows` hold one entry per row.
        """
        call = cls.unexamined(module, args, kwargs)
        call.examine(row_lists)
        return call

    @classmethod
    def unexamined(cls, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DenoiserCall:
        """Return the call with `rows` only, which is enough for a call that runs alone."""
        first = args[0] if args else kwargs.get(_first_parameter(type(module).forward))
        return cls(module, args, kwargs, rows=_count_rows(first), takes_list=isinstance(first, list))

    def examine(self, row_lists: bool = False) -> None:
        """Describe the call, if that was not done. A call that cannot be described gets `rows = 0` and runs alone."""
        if self.rows == 0 or self.kind is not None:
            return
        try:
            self._describe(row_lists)
        except Exception as error:  # a list that contains itself, or a custom type that pytree cannot flatten
            log.info("a call cannot be examined, and runs alone", error=described_error(error))
            self.rows, self.kind, self.leaves, self.spec = 0, None, [], None

    def _describe(self, row_lists: bool) -> None:
        tree: Any = (self.args, self.kwargs)
        if row_lists:
            tree = _mark_row_lists(self.args, self.kwargs, self.rows)
        self.leaves, self.spec = pytree.tree_flatten(tree)
        if not _is_comparable(self.spec):
            self.rows = 0
            return
        signature: list[Hashable] = []
        values: list[float | int] = []
        for leaf in self.leaves:
            if isinstance(leaf, torch.Tensor):
                if leaf.requires_grad or leaf.layout != torch.strided or leaf.is_meta:
                    self.rows = 0
                    return
                signature.append(_tensor_signature(leaf, self.rows))
            elif isinstance(leaf, RowList):
                signature.append("rows")
            elif type(leaf) in (int, float):
                signature.append(type(leaf).__name__)
                values.append(leaf)
            elif isinstance(leaf, np.number) and type(leaf).__module__ == "numpy":
                signature.append(leaf.dtype.name)
                values.append(leaf.item())
            elif is_plain(leaf):
                signature.append(leaf)
            else:
                number = _numbers.number(leaf)
                if number is None:
                    self.rows = 0
                    return
                signature.append(("object", number))
        self.kind = (_numbers.number(self.module), self.spec, row_lists, *signature)
        self.values = tuple(values)


def copy_containers(tree: Any) -> Any:
    """Return the same leaves in new lists, tuples and dicts."""
    if type(tree) in (list, tuple):
        return type(tree)(copy_containers(value) for value in tree)
    if type(tree) is dict:
        return {name: copy_containers(value) for name, value in tree.items()}
    return tree


def clone_tensors(tree: Any) -> Any:
    """Return the same tree with cloned tensors."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, tree)


def tensor_versions(leaves: list[Any]) -> list[Any]:
    """Return values that differ after a tensor among the leaves was changed in place."""
    return [
        # Tensors of inference mode have no version counter.
        float(leaf.double().sum()) if leaf.is_inference() else leaf._version
        for leaf in leaves
        if isinstance(leaf, torch.Tensor)
    ]


def is_row_scalar(tensor: torch.Tensor, rows: int) -> bool:
    """Whether a tensor holds one number for all rows or one per row: shape `[]`, `[1]` or `[rows]`, as a timestep."""
    return tensor.ndim == 0 or (tensor.ndim == 1 and tensor.shape[0] in (1, rows))


def _tensor_signature(tensor: torch.Tensor, rows: int) -> Hashable:
    if is_row_scalar(tensor, rows):
        return ("scalar", tensor.dtype, tensor.device)
    return (tensor.dtype, tensor.device, Fraction(tensor.shape[0], rows), tensor.shape[1:])


def is_plain(leaf: Any) -> bool:
    """Whether a leaf can be compared by value.

    Subclasses are excluded: they may define their own hash and comparison, which may raise for other requests.
    """
    kind: Any = type(leaf)
    return kind in _PLAIN or (isinstance(leaf, type) and (kind.__hash__, kind.__eq__) == (type.__hash__, type.__eq__))


def _is_comparable(spec: pytree.TreeSpec) -> bool:
    """Whether two structures can be compared without running foreign code (keys of dicts, contexts of custom nodes)."""
    left: list[Any] = [spec]
    for _ in range(_MOST_NODES):
        if not left:
            return True
        node = left.pop()
        if isinstance(node, pytree.TreeSpec):
            left.append(node.context)
            left.extend(node.children() if hasattr(node, "children") else node.children_specs)  # new in torch 2.9
        elif type(node) in (list, tuple):
            left.extend(node)
        elif not is_plain(node):
            return False
    return False


def _count_rows(first: Any) -> int:
    if isinstance(first, torch.Tensor) and first.ndim > 0:
        return int(first.shape[0])
    if isinstance(first, list) and first and all(isinstance(item, torch.Tensor) for item in first):
        return len(first)
    return 0


@lru_cache(maxsize=256)
def _first_parameter(forward: Callable[..., Any]) -> str:
    names = [name for name in inspect.signature(forward).parameters if name != "self"]
    return names[0] if names else ""


def _mark_row_lists(args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> tuple[Any, Any]:
    def mark(value: Any) -> Any:
        return RowList(value) if type(value) is list and len(value) == rows else value

    return tuple(mark(value) for value in args), {name: mark(value) for name, value in kwargs.items()}


def generator_states(values: Iterable[Any]) -> torch.Tensor:
    """Return the states of the generators that a call with `values` may use, as one byte tensor `[bytes]`.

    In a task, `get_rng_state` returns the state of the task's own generator.
    """
    values = list(values)
    states = [torch.get_rng_state()]
    devices = {value.device for value in values if isinstance(value, torch.Tensor) and value.device.type == "cuda"}
    states.extend(torch.cuda.get_rng_state(device) for device in sorted(devices, key=str))
    states.extend(value.get_state() for value in values if isinstance(value, torch.Generator))
    return torch.cat(states)
