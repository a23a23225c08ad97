"""What can be told of an executor from its class alone: that it has the methods of the contract, as they are called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Set
from types import MappingProxyType
from typing import Any

from omni_core.errors import PluginError, did_you_mean

# How each method is called: the arguments that it is given, in order.
_CALLS = MappingProxyType(
    {
        "__init__": ("config", "context"),
        "_init_executor": (),
        "collective_rpc": ("method", "timeout", "args", "kwargs", "unique_reply_rank"),
        "execute_model": ("requests",),
        "check_health": (),
        "shutdown": (),
        "execute_step": ("replica", "scheduler_output"),
        "interrupt": ("replica",),
        "is_ready": ("replica",),
        "describe_pipeline": (),
        "worker_stats": (),
        "begin_rpc": ("method", "args", "kwargs", "unique_reply_rank"),
        "request_queued": ("request",),
        "request_ended": ("request_id", "error"),
        "worker_pids": (),
        "on_change": ("listener",),
        "notify_change": (),
        "close": (),
    }
)
# Those whose arguments, but for the first so many, callers give by keyword too, or leave out.
_BY_KEYWORD = MappingProxyType({"collective_rpc": 1, "begin_rpc": 1})
_PROPERTIES = ("name", "num_replicas", "fault")
_FLAGS = ("runs_diffusion_worker", "can_interrupt", "accepts_pipeline", "has_worker_processes")


def check_executor_class(cls: Any, path: str, whose: str = "") -> None:
    """Return if a class can be an executor. Nothing of it is called.

    Args:
        cls: The class.
        path: Its import path, for the message.
        whose: Ends the message.

    Raises:
        PluginError: It cannot; the message names the method or the attribute and what is expected there.
    """
    from omni_core.executor import OPTIONS_TO_DECLARE, DiffusionExecutor

    if not isinstance(cls, type):
        raise PluginError(f"{path} is {type(cls).__name__} {cls!r}, and no class.{whose}")
    if not issubclass(cls, DiffusionExecutor):
        raise PluginError(f"{path} is no subclass of omni_core.DiffusionExecutor.{whose}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise PluginError(f"{path} does not implement all of omni_core.DiffusionExecutor: it lacks {missing}.{whose}")
    for name, arguments in _CALLS.items():
        if _is_overridden(cls, name, DiffusionExecutor):
            problem = _problem_of_method(inspect.getattr_static(cls, name), name, arguments)
            if problem:
                raise PluginError(f"{path}: {problem}.{whose}")
    for name in _PROPERTIES:
        if callable(inspect.getattr_static(cls, name)):
            raise PluginError(f"{path}: {name} is a method and must be a property: put @property above it.{whose}")
    for name in _FLAGS:
        value = inspect.getattr_static(cls, name)
        if not isinstance(value, bool):
            raise PluginError(f"{path}: {name} is {_shown(value)} and must be True or False, on the class.{whose}")
    _check_options(inspect.getattr_static(cls, "supported_options"), OPTIONS_TO_DECLARE, path, whose)


def _check_options(options: Any, known: Set[str], path: str, whose: str) -> None:
    if not isinstance(options, Set):
        raise PluginError(
            f"{path}: supported_options is {_shown(options)} and must be a set of names of configuration fields, as "
            f"frozenset({{'compile'}}).{whose}"
        )
    for option in options:
        if option not in known:
            near = did_you_mean(option, known) if isinstance(option, str) else ""
            raise PluginError(
                f"{path}: supported_options has {option!r}, which is no option that an executor declares.{near} "
                f"Those are: {', '.join(sorted(known))}.{whose}"
            )


def _is_overridden(cls: type, name: str, base: type) -> bool:
    return inspect.getattr_static(cls, name) is not inspect.getattr_static(base, name)


def _problem_of_method(member: Any, name: str, arguments: tuple[str, ...]) -> str | None:
    """Return what is wrong with a method of the class, or None."""
    function, is_bound = member, False
    if isinstance(member, (staticmethod, classmethod)):
        function, is_bound = member.__func__, isinstance(member, staticmethod)
    elif isinstance(member, functools.partialmethod):
        function = member.__get__(None, object)
    if not callable(function):
        return f"{name} is {_shown(member)} and must be a method"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return f"{name} is `async def` and must be a plain method: nothing would await it"
    if inspect.isgeneratorfunction(function):
        return f"{name} contains `yield`: calling it would run none of it"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return None
    own = () if is_bound else ("self",)
    try:
        signature.bind(*own, *arguments)
        if name in _BY_KEYWORD:
            given, others = arguments[: _BY_KEYWORD[name]], arguments[_BY_KEYWORD[name] :]
            signature.bind(*own, *given)
            signature.bind(*own, *given, **dict.fromkeys(others))
    except TypeError as error:
        also = ", by position and by keyword, which may be left out" if name in _BY_KEYWORD else ""
        return f"{name}{signature} must take ({', '.join(arguments)}){also}: {error}"
    return None


def _shown(value: Any) -> str:
    return f"{value!r}" if isinstance(value, (str, int, float, tuple, list)) or value is None else type(value).__name__
