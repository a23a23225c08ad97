"""Detects state that pipelines and models store in the modules that all requests share.

A pipeline may pass a value to its model by an attribute (`unet.condition = …`), or change its weights during a call. A
model may store a value in itself that the pipeline reads after the call (`unet.attention_map`). Both work for one
request at a time. If requests take turns at every denoiser call, one request would get the value of another. So such
state is detected, and then requests run one after another.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from omni_core.worker.pipeline import diffusers_hooks
from omni_core.worker.stacking.call import is_plain

# Attributes of torch itself, and those that are kept separate per request elsewhere (`module_edits.py`,
# `cache_state.py`, `foreign_state.py`).
_NOT_LOOKED_AT = frozenset(vars(torch.nn.Module())) | {"processor", "forward", diffusers_hooks.ATTRIBUTE}

# Number of weights of which one value is compared.
_SAMPLED = 16


class ModelState:
    """A snapshot of the attributes and weights of modules.

    Args:
        parts: The modules, including their submodules.
    """

    def __init__(self, parts: Sequence[torch.nn.Module]) -> None:
        self._parts = parts
        self._attributes = [part.__dict__.copy() for part in parts]
        self._weights = _weights(parts)
        self._versions = _versions(self._weights)
        self._sample = _sample(self._weights)
        self._numbers = list(map(_number, self._sample))

    def change(self) -> str | None:
        """Return which attribute or weight has changed since the snapshot, as `UNet.condition`; None if none has."""
        for part, attributes in zip(self._parts, self._attributes, strict=True):
            for name in _new_attributes(part, attributes):
                if name not in attributes or not _is_same(attributes[name], part.__dict__[name]):
                    return f"{type(part).__name__}.{name}"
        weights = _weights(self._parts)
        is_same = len(weights) == len(self._weights) and all(map(operator.is_, weights, self._weights))
        if is_same and _versions(weights) == self._versions and list(map(_number, self._sample)) == self._numbers:
            return None
        return f"weights of {type(self._parts[0]).__name__}"

    def tensors_left(self) -> dict[tuple[int, str], tuple[str, list[torch.Tensor]]]:
        """Return the tensors in attributes and buffers that are new since the snapshot.

        Returns:
            By index of the module and name of the attribute: the name for messages, and its tensors, of any shape.
        """
        left: dict[tuple[int, str], tuple[str, list[torch.Tensor]]] = {}
        before = dict(zip(map(id, self._weights), self._versions, strict=True))
        for number, (part, attributes) in enumerate(zip(self._parts, self._attributes, strict=True)):
            found = {name: part.__dict__[name] for name in _new_attributes(part, attributes)}
            for name, buffer in part._buffers.items():
                if buffer is not None and before.get(id(buffer)) != _versions([buffer])[0]:
                    found[name] = buffer
            for name, value in found.items():
                if tensors := list(_tensors(value)):
                    left[number, name] = (f"{type(part).__name__}.{name}", tensors)
        return left


def left_by_each(left: Sequence[Mapping[tuple[int, str], tuple[str, list[torch.Tensor]]]]) -> str | None:
    """Return the name of an attribute in which calls of one kind stored different tensors; None if there is none.

    Tensors that do not depend on the call, such as a table of positions, do not matter.

    Args:
        left: The result of `ModelState.tensors_left` after each call.
    """
    first: dict[tuple[int, str], list[torch.Tensor]] = {}
    for one in left:
        for place, (name, tensors) in one.items():
            before = first.setdefault(place, tensors)
            if before is not tensors and not _are_equal(before, tensors):
                return name
    return None


def _new_attributes(part: torch.nn.Module, before: dict[str, Any]) -> list[str]:
    now = part.__dict__
    # The fast path: there may be thousands of modules, and nearly always nothing has changed.
    if len(now) == len(before) and all(map(operator.is_, now.values(), before.values())):
        return []
    return [name for name in now if now[name] is not before.get(name) and name not in _NOT_LOOKED_AT]


def _weights(parts: Sequence[torch.nn.Module]) -> list[torch.Tensor]:
    """Return all parameters and buffers."""
    owned = itertools.chain.from_iterable((part._parameters.values(), part._buffers.values()) for part in parts)
    return [tensor for tensor in itertools.chain.from_iterable(owned) if tensor is not None]


def _versions(tensors: Sequence[torch.Tensor]) -> list[int]:
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # tensors of inference mode have none
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def _sample(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return a sample of the weights. A change through `.data`, as when a LoRA is fused, has no version."""
    return [
        weight
        for weight in weights[:: max(1, len(weights) // _SAMPLED)]
        if type(weight) is torch.nn.Parameter and weight.ndim > 0 and weight.numel() and not weight.is_meta
    ]


def _number(weight: torch.Tensor) -> str:
    return str(weight.detach()[(0,) * weight.ndim].item())  # as text, since NaN is not equal to itself


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and is_plain(one) and bool(one == other))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield copies of the tensors in an attribute: a tensor, or the entries of a list, tuple or dict."""
    inside: Any = value.values() if type(value) is dict else value if type(value) in (list, tuple) else (value,)
    for entry in inside:
        if isinstance(entry, torch.Tensor):
            yield entry.detach().clone()  # the next call may overwrite it


def _are_equal(ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return len(ones) == len(others) and all(map(torch.equal, ones, others))
