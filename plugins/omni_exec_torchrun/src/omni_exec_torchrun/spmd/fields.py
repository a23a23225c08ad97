"""Describes requests and configurations as text, so that ranks can compare them."""

from __future__ import annotations

import hashlib
from typing import Any

from omni_core import OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.config import FieldMark, marked_fields

# Longer text is cut, and a digest of the whole text is added.
_SHOWN = 120
# The fields of the configuration that must be the same on all ranks. Each machine may have its own `num_threads`.
_CONFIG_FIELDS = (
    "model",
    "model_options",
    "dtype",
    "request_defaults",
    *(name for name in marked_fields(FieldMark.RANKS, FieldMark.WORKER) if name != "num_threads"),
)


def request_fields(request: OmniDiffusionRequest) -> dict[str, str]:
    """Return the fields of a request that must be the same on all ranks, as text. An unset seed is `not set`."""
    fields = {
        name: describe(getattr(request, name))
        for name in type(request).model_fields
        if name not in ("request_id", "metadata", "extra_args", "seed")
    }
    fields["seed"] = describe(request.seed) if "seed" in request.model_fields_set else "not set"
    fields.update({name: describe(value) for name, value in sorted(request.extra_args.items())})
    return fields


def config_fields(config: OmniDiffusionConfig) -> dict[str, str]:
    """Return the fields of the configuration that must be the same on all ranks, as text."""
    return {name: describe(getattr(config, name)) for name in _CONFIG_FIELDS}


def describe(value: Any) -> str:
    """Return a value as text: tensors, arrays and pictures with a digest, unknown objects as their type."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(describe, value)) + "]"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return _shortened(repr(value))
    return _described_object(value)


def _described_object(value: Any) -> str:
    import numpy
    import PIL.Image
    import torch

    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return f"tensor of {value.dtype} {list(value.shape)} {_digest(flat.numpy())}"
    if isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
        return f"array of {value.dtype} {list(value.shape)} {_digest(numpy.ascontiguousarray(value))}"
    if isinstance(value, PIL.Image.Image):
        return f"picture {value.mode} {value.size[0]}x{value.size[1]} {_digest(value.tobytes())}"
    if isinstance(value, numpy.generic | torch.dtype | torch.device):
        return repr(value)
    name = getattr(value, "__qualname__", None)
    return str(name) if callable(value) and name else f"an object of {type(value).__qualname__}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters, {_digest(text.encode())})"


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=6).hexdigest()
