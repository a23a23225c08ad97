"""Finding the denoisers of any pipeline, and making copies of the pipeline in which calling one suspends the task.

Nothing here knows a model by name. A denoiser is a module that the pipeline calls as a function during denoising:
transformers, UNets, ControlNets, priors. Text and image encoders are left out because they belong to `transformers`,
autoencoders because a pipeline calls their `encode` and `decode`: those suspend the task too, to be run beside the
denoising of others.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import types
from collections.abc import Iterator
from typing import Any, cast

import torch

from omni_core.worker.pipeline.counted_scheduler import count_steps
from omni_core.worker.pipeline.foreign_state import foreign_forward, foreign_step
from omni_core.worker.pipeline.lookalike import is_lookalike, lookalike
from omni_core.worker.pipeline.module_edits import EditableParts, parts_of
from omni_core.worker.pipeline.stand_ins import (
    AutoencoderCall,
    DenoiserCall,
    autoencoder_stand_in,
    denoiser_stand_in,
    running_task,
)

# Lists, tuples and dicts of a pipeline are looked into up to this length: none has so many components.
_MOST_ENTRIES = 64
# What a pipeline may keep its own notes of a run in. What is in them is shared.
_CONTAINERS = (list, dict, set, bytearray, collections.deque)


def find_denoisers(pipeline: Any) -> dict[str, torch.nn.Module]:
    """Return the denoisers of `pipeline` by attribute name, those of pipelines inside it as `outer.inner`."""
    return {name: value for name, value in _components(pipeline) if _is_denoiser(value)}


class SuspendablePipeline:
    """Makes the copy of a pipeline in which one request runs.

    A copy shares every component with the original, but has schedulers of its own (they hold the state of one run)
    and stand-ins for the denoisers and autoencoders. What the pipeline assigns to itself while it runs is counted
    and stood in for as well.

    Args:
        pipeline: The loaded pipeline. It is not changed. Its components may be replaced between two requests.
        on_call: What calling a denoiser's stand-in does instead of running the module.
        on_autoencoder_call: What the methods of an autoencoder's stand-in do instead of running.

    Attributes:
        parts: The denoisers and all modules inside of them, each once.
        editable_parts: Where the pipeline may change its denoisers while it runs.
        cached_modules: The denoisers on which a step cache is enabled.
        shared_state: Why requests must not run at the same time, if it is so: something has been put into the model
            that may remember what it computed last.
    """

    def __init__(self, pipeline: Any, on_call: DenoiserCall, on_autoencoder_call: AutoencoderCall) -> None:
        self._pipeline = pipeline
        self._on_call = on_call
        self._on_autoencoder_call = on_autoencoder_call
        # By the module's id: it, its class at that time, and its stand-in.
        self._stand_ins: dict[int, tuple[torch.nn.Module, type[Any], torch.nn.Module]] = {}
        self.parts: list[torch.nn.Module] = []
        self.editable_parts = EditableParts(())
        self.refresh()

    def refresh(self) -> None:
        """Look at the pipeline again: its owner may have replaced components, or put something into them."""
        components = [value for _, value in _components(self._pipeline)]
        denoisers = {id(value): value for value in components if _is_denoiser(value)}
        known = self._stand_ins
        self._stand_ins = {}  # without those of modules that are gone, which would keep them in memory
        for value in components:
            if _is_own_module(value):
                found = known.get(id(value))
                if found is None or found[0] is not value or found[1] is not type(value):
                    found = (value, type(value), self._stand_in(value))
                self._stand_ins[id(value)] = found
        parts = parts_of(denoisers.values())
        if list(map(id, parts)) != list(map(id, self.parts)):
            self.parts = parts
            self.editable_parts = EditableParts(parts)
        self.cached_modules = tuple(
            module for module in denoisers.values() if getattr(module, "is_cache_enabled", False)
        )
        steps = (foreign_step(value) for value in components if _is_scheduler(value))
        self.shared_state = foreign_forward(parts) or next(filter(None, steps), None)

    def copy(self) -> Any:
        """Return a copy for one request."""
        return self._copy(self._pipeline, {})

    def _copy(self, pipeline: Any, known: dict[int, Any]) -> Any:
        """Return a copy; `known` holds what has been copied already, by the id of the original."""
        if id(pipeline) in known:
            return known[id(pipeline)]
        twin = known[id(pipeline)] = copy.copy(pipeline)
        # Straight into __dict__: DiffusionPipeline.__setattr__ would write the stand-ins' class into the config.
        twin.__dict__.pop("progress_bar", None)
        for name, value in twin.__dict__.items():
            if isinstance(value, types.MethodType) and value.__self__ is pipeline:
                twin.__dict__[name] = types.MethodType(value.__func__, twin)
            else:
                twin.__dict__[name] = self._own(value, known)
        with contextlib.suppress(TypeError):  # slots, or a class that forbids another: no progress, the same result
            twin.__class__ = _suspendable_class(cast(Any, type(pipeline)))
        return twin

    def _own(self, value: Any, known: dict[int, Any]) -> Any:
        """Return what a copy of the pipeline has in place of a component."""
        if (found := self._stand_ins.get(id(value))) is not None:
            return found[2]
        if _is_pipeline(value):
            return self._copy(value, known)
        if _is_scheduler(value):
            if id(value) not in known:
                # A foreign `step` belongs to this very scheduler.
                known[id(value)] = value if foreign_step(value) else count_steps(copy.deepcopy(value))
            return known[id(value)]
        if (entries := _entries(value)) is not None:
            own = {key: self._own(entry, known) for key, entry in entries.items()}
            if any(own[key] is not entry for key, entry in entries.items()):
                return own if type(value) is dict else type(value)(own.values())
        if type(value) in _CONTAINERS:  # a history, say, which the pipeline clears when it begins
            return known.setdefault(id(value), copy.copy(value))
        return value

    def adopt(self, value: Any) -> Any:
        """Return what a running copy of the pipeline gets for a component that it assigns to itself."""
        if _is_own_module(value) and not is_lookalike(value):
            found = self._stand_ins.get(id(value))
            return found[2] if found is not None else self._stand_in(value)
        if _is_scheduler(value) and not foreign_step(value):
            return count_steps(value)
        return value

    def _stand_in(self, module: torch.nn.Module) -> torch.nn.Module:
        if _is_denoiser(module):
            return denoiser_stand_in(module, self._on_call)
        return autoencoder_stand_in(module, self._on_autoencoder_call)


@functools.lru_cache(maxsize=64)
def _suspendable_class(real: Any) -> type[Any]:
    def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807
        task = running_task()
        real.__setattr__(self, name, value if task is None else task.suspendable.adopt(value))

    def progress_bar(self: Any, *args: Any, **kwargs: Any) -> Any:
        task = running_task()
        return real.progress_bar(self, *args, **kwargs) if task is None else task.steps.bar(*args, **kwargs)

    return lookalike(real, {"__setattr__": __setattr__, "progress_bar": progress_bar})


def _components(pipeline: Any, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Go through what a pipeline and the pipelines inside it have, lists and dicts included, by name."""
    seen = set() if seen is None else seen
    if id(pipeline) in seen:
        return
    seen.add(id(pipeline))
    for name, value in vars(pipeline).items():
        yield from _inside(f"{prefix}{name}", value, seen)


def _inside(name: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if _is_pipeline(value):
        yield from _components(value, f"{name}.", seen)
    elif (entries := _entries(value)) is not None:
        for key, entry in entries.items():
            yield from _inside(f"{name}.{key}", entry, seen)
    else:
        yield name, value


def _entries(value: Any) -> dict[Any, Any] | None:
    if type(value) in (list, tuple) and len(value) <= _MOST_ENTRIES:
        return dict(enumerate(value))
    if type(value) is dict and len(value) <= _MOST_ENTRIES:
        return value
    return None


def _is_denoiser(value: Any) -> bool:
    return _is_own_module(value) and not hasattr(value, "decode")


def _is_own_module(value: Any) -> bool:
    if not isinstance(value, torch.nn.Module) or isinstance(value, torch.jit.ScriptModule):
        return False
    from transformers import PreTrainedModel

    return not isinstance(value, PreTrainedModel)


def _is_pipeline(value: Any) -> bool:
    from diffusers import DiffusionPipeline

    return isinstance(value, DiffusionPipeline)


def _is_scheduler(value: Any) -> bool:
    # Not all have a `step`: that of score SDEs has one for predicting and one for correcting.
    return not isinstance(value, (type, torch.nn.Module)) and callable(getattr(value, "set_timesteps", None))
