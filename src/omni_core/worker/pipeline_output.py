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


def refuse_nan(fields: Mapping[str, Any]) -> None:
    """Return if no array or tensor of an output holds NaN.

    Raises:
        FloatingPointError: One does.
    """
    for value in fields.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, torch.Tensor) and item.is_floating_point() and bool(item.isnan().any()):
                raise FloatingPointError(NAN_MESSAGE)
            if isinstance(item, np.ndarray) and item.dtype.kind == "f" and bool(np.isnan(item).any()):
                raise FloatingPointError(NAN_MESSAGE)
