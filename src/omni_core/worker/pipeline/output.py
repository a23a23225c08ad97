"""Reading what a pipeline returned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

NAN_MESSAGE = (
    "the output holds values that are not numbers (NaN). Often half precision overflowed: try dtype='float32', "
    "another attention_backend, or a lower guidance_scale."
)


def output_fields(returned: Any) -> dict[str, Any]:
    """Return the fields of a pipeline's output by name, tensors free of the autograd graph.

    diffusers returns `BaseOutput` (a mapping and a dataclass), with fields such as `images`, `frames` or `audios`.
    Anything else, as a user's own pipeline may return, is the single field `output`.
    """
    fields: dict[str, Any]
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        fields = {field.name: getattr(returned, field.name) for field in dataclasses.fields(returned)}
    elif isinstance(returned, Mapping):
        fields = {str(name): value for name, value in returned.items()}
    else:
        fields = {"output": returned}
    return {name: _detached(value) for name, value in fields.items()}


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, list):
        return [_detached(item) for item in value]
    return value


def holds_nan(value: Any) -> bool:
    """Whether a field of an output holds NaN."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() and bool(value.isnan().any())
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "f" and bool(np.isnan(value).any())
    return isinstance(value, (list, tuple)) and any(map(holds_nan, value))


def is_exact(value: Any) -> bool:
    """Whether a field of an output would show NaN: it is not rounded to whole numbers, as pictures are."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    if isinstance(value, np.ndarray):
        return bool(value.dtype.kind == "f")
    if isinstance(value, (list, tuple)):
        return all(map(is_exact, value))
    return value is None or isinstance(value, (bool, str))
