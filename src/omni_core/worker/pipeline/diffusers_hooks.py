"""What diffusers keeps on a module for its hooks (caches, offload, context parallelism), and does not tell otherwise.

Read in diffusers 0.42 (`diffusers/hooks/hooks.py`); `tests/test_private_names.py` says when that changes.
"""

from __future__ import annotations

from typing import Any

import torch

# The attribute of a module that holds its registry of hooks.
ATTRIBUTE = "_diffusers_hook"


def original_forwards(part: torch.nn.Module) -> list[Any]:
    """Return what the hooks of a module call in the end: the `forward`s that they have replaced."""
    references = getattr(part.__dict__.get(ATTRIBUTE), "_fn_refs", [])
    return [reference.original_forward or reference.forward for reference in references]


def state_holders(module: torch.nn.Module) -> list[tuple[Any, dict[str, Any]]]:
    """Return the objects that hold state for the stateful hooks of a module, with their attributes that are state."""
    from diffusers.hooks.hooks import StateManager

    found: dict[int, tuple[Any, dict[str, Any]]] = {}
    for part in module.modules():
        registry = getattr(part, ATTRIBUTE, None)
        for hook in getattr(registry, "hooks", {}).values():
            if not getattr(hook, "_is_stateful", False):
                continue
            if hasattr(hook, "state"):
                found[id(hook)] = (hook, {"state": hook.state})
            for value in vars(hook).values():
                if isinstance(value, StateManager):
                    found[id(value)] = (value, {"_state_cache": value._state_cache, "_context": value._context})
    return list(found.values())
