"""Finding the denoisers of any pipeline, and making copies of the pipeline in which calling one suspends the task.

Nothing here knows a model by name. A denoiser is a module that the pipeline calls as a function during denoising:
transformers, UNets, ControlNets, priors. Text and image encoders are left out because they belong to `transformers`,
autoencoders because a pipeline calls their `encode` and `decode`: those suspend the task too, to be run beside the
denoising of others.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch

from omni_core.worker.module_edits import EditableParts

# Gets the real module and the arguments of a call that a pipeline made; returns what the pipeline shall get.
DenoiserCall = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], Any]


def find_denoisers(pipeline: Any) -> dict[str, torch.nn.Module]:
    """Return the denoisers of `pipeline` by attribute name, those of pipelines inside it as `outer.inner`."""
    found: dict[str, torch.nn.Module] = {}
    for name, value in vars(pipeline).items():
        if _is_denoiser(value):
            found[name] = value
        elif _is_pipeline(value):
            found.update({f"{name}.{inner}": module for inner, module in find_denoisers(value).items()})
    return found


# Gets a method of an autoencoder and the arguments of a call of it; returns what the pipeline shall get.
AutoencoderCall = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
_AUTOENCODER_METHODS = ("encode", "decode")


class SuspendablePipeline:
    """Makes the copy of a pipeline in which one request runs.

    A copy shares every component with the original, but has schedulers of its own (they hold the state of one run)
    and stand-ins for the denoisers. A stand-in is of a subclass of the denoiser's class and shares its parameters
    and attributes, so `isinstance`, `.config`, `.dtype` and the like behave; only calling it is different.

    Args:
        pipeline: The loaded pipeline. It is not changed.
        on_call: What calling a denoiser's stand-in does instead of running the module.
        on_autoencoder_call: What the methods of an autoencoder's stand-in do instead of running.

    Attributes:
        editable_parts: Where the pipeline may change its denoisers while it runs.
    """

    def __init__(self, pipeline: Any, on_call: DenoiserCall, on_autoencoder_call: AutoencoderCall) -> None:
        self._pipeline = pipeline
        self.editable_parts = EditableParts(find_denoisers(pipeline).values())
        self._stand_ins: dict[int, torch.nn.Module] = {}
        for module in find_denoisers(pipeline).values():
            self._stand_ins.setdefault(id(module), _denoiser_stand_in(module, on_call))
        for module in _find_autoencoders(pipeline):
            self._stand_ins.setdefault(id(module), _autoencoder_stand_in(module, on_autoencoder_call))

    def copy(self, **attributes: Any) -> Any:
        """Return a copy for one request, with `attributes` set on it and on the pipelines inside it."""
        return self._copy(self._pipeline, attributes, {})

    def _copy(self, pipeline: Any, attributes: dict[str, Any], schedulers: dict[int, Any]) -> Any:
        twin = copy.copy(pipeline)
        # Straight into __dict__: DiffusionPipeline.__setattr__ would write the stand-ins' class into the config.
        for name, value in vars(pipeline).items():
            if id(value) in self._stand_ins:
                twin.__dict__[name] = self._stand_ins[id(value)]
            elif _is_pipeline(value):
                twin.__dict__[name] = self._copy(value, attributes, schedulers)
            elif _is_scheduler(value):
                if id(value) not in schedulers:
                    schedulers[id(value)] = copy.deepcopy(value)
                twin.__dict__[name] = schedulers[id(value)]
        twin.__dict__.update(attributes)
        return twin


def schedulers_of(pipeline: Any) -> list[Any]:
    """Return the schedulers of `pipeline` and of the pipelines inside it, each once."""
    found: dict[int, Any] = {}
    for value in vars(pipeline).values():
        if _is_scheduler(value):
            found[id(value)] = value
        elif _is_pipeline(value):
            found.update({id(scheduler): scheduler for scheduler in schedulers_of(value)})
    return list(found.values())


def _find_autoencoders(pipeline: Any) -> list[torch.nn.Module]:
    found = []
    for value in vars(pipeline).values():
        if _is_own_module(value) and hasattr(value, "decode"):
            found.append(value)
        elif _is_pipeline(value):
            found.extend(_find_autoencoders(value))
    return found


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
    return callable(getattr(value, "set_timesteps", None))


def _denoiser_stand_in(module: torch.nn.Module, on_call: DenoiserCall) -> torch.nn.Module:
    def __call__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        return on_call(module, args, kwargs)

    return _stand_in(module, {"__call__": __call__})


def _autoencoder_stand_in(module: torch.nn.Module, on_call: AutoencoderCall) -> torch.nn.Module:
    loaded_dtype = _dtype(module)

    def suspended(name: str) -> property:
        def get(self: torch.nn.Module) -> Callable[..., Any]:
            method = getattr(module, name)

            @functools.wraps(method)  # pipelines look at the signature of `decode`
            def call(*args: Any, **kwargs: Any) -> Any:
                if _dtype(module) != loaded_dtype:
                    # The pipeline has cast the shared module for this call, and casts it back after: nobody's turn.
                    return method(*args, **kwargs)
                return on_call(method, args, kwargs)

            return call

        # A property goes before what somebody set on the module itself, such as a compiled `decode`.
        return property(get)

    return _stand_in(module, {name: suspended(name) for name in _AUTOENCODER_METHODS if hasattr(module, name)})


def _dtype(module: torch.nn.Module) -> torch.dtype | None:
    return next((parameter.dtype for parameter in module.parameters()), None)


def _stand_in(module: torch.nn.Module, members: dict[str, Any]) -> torch.nn.Module:
    real = type(module)
    body = {**members, "__module__": real.__module__, "__qualname__": real.__qualname__}
    stand_in: torch.nn.Module = object.__new__(type(real.__name__, (real,), body))
    stand_in.__dict__ = module.__dict__
    return stand_in
