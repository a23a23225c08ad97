"""Knowing when something foreign has been put into a model that may remember what it computed last.

Step caches that are not of diffusers (TeaCache, DeepCache and the like) replace `forward` of a denoiser or of its
blocks and keep counters and residuals there, for one pipeline call at a time. Where they keep them cannot be known, so
that state cannot be kept apart by request, as that of diffusers' own hooks is.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable
from typing import Any

import torch

from omni_core.worker.pipeline.diffusers_hooks import original_forwards

# What these put in place of a `forward` keeps no state, or state that is known (see `cache_state.py`).
_TRUSTED = ("torch", "diffusers", "accelerate", "transformers")


def foreign_forward(parts: Iterable[torch.nn.Module]) -> str | None:
    """Return which `forward` of some modules is replaced by something foreign, or None if none is."""
    classes = set()
    for part in parts:
        classes.add(type(part))
        replaced = part.__dict__.get("forward")
        if replaced is not None and not _is_known(part, replaced):
            return f"{type(part).__name__}.forward is replaced by {_name(replaced)}"
    for kind in classes:
        home = next((base for base in kind.__mro__ if "forward" in vars(base)), None)
        if home is not None and _is_trusted(home.__module__):
            function = vars(home)["forward"]
            if isinstance(function, types.FunctionType) and not _is_trusted(_home_of(function)):
                return f"{home.__name__}.forward is replaced by {_name(function)}"
    return None


def foreign_step(scheduler: Any) -> str | None:
    """Return which method of a scheduler is replaced by a function that knows this scheduler only, or None."""
    for name, value in getattr(scheduler, "__dict__", {}).items():
        # A bound method of the scheduler's own goes with it into a copy.
        if isinstance(value, (types.FunctionType, functools.partial)) and callable(
            getattr(type(scheduler), name, None)
        ):
            return f"{type(scheduler).__name__}.{name} is replaced by {_name(value)}"
    return None


def _is_known(part: torch.nn.Module, forward: Any) -> bool:
    """Whether a `forward` that was set on a module itself is the class's own, or a hook of diffusers or accelerate."""
    called = [forward, part.__dict__.get("_old_forward")]  # the latter by accelerate's hook
    called += original_forwards(part)
    return all(one is None or _is_harmless(part, one) for one in called)


def _is_harmless(part: torch.nn.Module, forward: Any) -> bool:
    function = forward.func if isinstance(forward, functools.partial) else forward
    if isinstance(function, types.MethodType):
        function = function.__func__
        if any(vars(base).get("forward") is function for base in type(part).__mro__):
            return forward.__self__ is part
    return isinstance(function, types.FunctionType) and _is_trusted(_home_of(function))


def _home_of(function: Any) -> str:
    """Return the module that the code of a function is of. Its `__module__` may be that of what it wraps."""
    return str(getattr(function, "__globals__", {}).get("__name__", ""))


def _is_trusted(module_name: str) -> bool:
    return module_name.partition(".")[0] in _TRUSTED


def _name(function: Any) -> str:
    function = function.func if isinstance(function, functools.partial) else function
    name = getattr(function, "__qualname__", type(function).__name__)
    code = getattr(function, "__code__", None)
    return f"{name} of {_home_of(function)}" if code is not None else str(name)
