"""Writing arrays, such as latents, as .npz or .safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_core.media.artifacts import is_tensor, to_numpy
from omni_core.media.provenance import Provenance


def default_ending(arrays: Mapping[str, Any]) -> str:
    """Return .safetensors, which keeps every precision, if one of them is a tensor; else .npz."""
    return ".safetensors" if any(is_tensor(value) for value in arrays.values()) else ".npz"


def write_arrays(path: Path, arrays: Mapping[str, Any], provenance: Provenance) -> None:
    """Write arrays by name, with how they were made beside them."""
    if path.suffix.lower() == ".npz":
        import numpy as np

        members = {name: to_numpy(value) for name, value in arrays.items()}
        np.savez(path, omni=np.array(provenance.json()), **members)
    elif any(is_tensor(value) for value in arrays.values()):
        from safetensors.torch import save_file

        tensors = {name: _as_tensor(value) for name, value in arrays.items()}
        save_file(tensors, path, metadata=provenance.texts())
    else:
        import numpy as np
        from safetensors.numpy import save_file as save_numpy_file

        plain = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        save_numpy_file(plain, path, metadata=provenance.texts())


def _as_tensor(value: Any) -> Any:
    import importlib

    # By name: this layer does not depend on torch; here it is loaded already, as one of the arrays is a tensor.
    torch = importlib.import_module("torch")
    tensor = value if is_tensor(value) else torch.from_numpy(value)
    # A copy, since safetensors takes no two tensors that share memory.
    return tensor.detach().cpu().contiguous().clone()
