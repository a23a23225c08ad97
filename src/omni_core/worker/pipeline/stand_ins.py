"""Stand-ins for the modules of a pipeline: calling one suspends the task that does.

A stand-in is of a subclass of the module's class and shares its attributes, so `isinstance`, `.config`, `.dtype` and
the like behave; only calling it is different. A copy of a stand-in is a stand-in for a copy of the module, and what its
class makes (`type(unet).from_config(...)`) is a stand-in for a module of its own.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable
from typing import Any

import greenlet
import torch

from omni_core.worker.pipeline.lookalike import is_lookalike, lookalike, real_class

# Gets the real module and the arguments of a call that a pipeline made; returns what the pipeline shall get.
DenoiserCall = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], Any]
# Gets a method of an autoencoder and the arguments of a call of it; returns what the pipeline shall get.
AutoencoderCall = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
AUTOENCODER_METHODS = ("encode", "decode")
# Where a stand-in keeps the real module: in a slot, as its attributes are the module's.
_SLOT = "_omni_module"


def denoiser_stand_in(module: torch.nn.Module, on_call: DenoiserCall) -> torch.nn.Module:
    """Return a stand-in whose call is `on_call`."""

    def __call__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        return on_call(real_module(self), args, kwargs)

    return _stand_in(module, {"__call__": __call__})


def autoencoder_stand_in(module: torch.nn.Module, on_call: AutoencoderCall) -> torch.nn.Module:
    """Return a stand-in whose `encode` and `decode` are `on_call`."""
    loaded_dtype = _dtype(module)

    def suspended(name: str) -> property:
        def get(self: torch.nn.Module) -> Callable[..., Any]:
            real = real_module(self)
            method = getattr(real, name)

            @functools.wraps(method)  # pipelines look at the signature of `decode`
            def call(*args: Any, **kwargs: Any) -> Any:
                if _dtype(real) != loaded_dtype:
                    # The pipeline has cast the shared module for this call, and casts it back after: nobody's turn.
                    return method(*args, **kwargs)
                return on_call(method, args, kwargs)

            return call

        # A property goes before what somebody set on the module itself, such as a compiled `decode`.
        return property(get)

    return _stand_in(module, {name: suspended(name) for name in AUTOENCODER_METHODS if hasattr(module, name)})


def real_module(stand_in: torch.nn.Module) -> torch.nn.Module:
    """Return the module that a stand-in stands for; any other module is returned itself."""
    if not is_lookalike(stand_in):
        return stand_in
    kind = type(stand_in)
    slot = getattr(kind, _SLOT)
    try:
        module = slot.__get__(stand_in, kind)
    except AttributeError:  # made by the pipeline, of the stand-in's class
        module = object.__new__(real_class(kind))
        module.__dict__ = stand_in.__dict__
        slot.__set__(stand_in, module)
    assert isinstance(module, torch.nn.Module)
    return module


def _stand_in(module: torch.nn.Module, members: dict[str, Any]) -> torch.nn.Module:
    def __copy__(self: torch.nn.Module) -> torch.nn.Module:  # noqa: N807
        return _of_class(type(self), copy.copy(real_module(self)))

    def __deepcopy__(self: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:  # noqa: N807
        return _of_class(type(self), copy.deepcopy(real_module(self), memo))

    def __reduce_ex__(self: torch.nn.Module, _protocol: Any) -> Any:  # noqa: N807
        # Pickled, it is the module.
        return operator.itemgetter(0), ((real_module(self),),)

    members = {
        **members,
        "__slots__": (_SLOT,),
        "__copy__": __copy__,
        "__deepcopy__": __deepcopy__,
        "__reduce_ex__": __reduce_ex__,
    }
    return _of_class(lookalike(type(module), members), module)


def _of_class(kind: type[torch.nn.Module], module: torch.nn.Module) -> torch.nn.Module:
    stand_in = object.__new__(kind)
    stand_in.__dict__ = module.__dict__
    getattr(kind, _SLOT).__set__(stand_in, module)
    return stand_in


def _dtype(module: torch.nn.Module) -> torch.dtype | None:
    return next((parameter.dtype for parameter in module.parameters()), None)


def running_task() -> Any:
    """Return the `PipelineTask` whose pipeline the caller runs in, or None outside of one, as in a thread of its own.

    What stands in for a part of a pipeline asks this when it is called, instead of holding the task: so a copy of it,
    however it was made, belongs to the request that uses it.
    """
    return getattr(greenlet.getcurrent(), "task", None)
