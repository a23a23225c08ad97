"""Draws from torch's default generators, turned to the generators of the task that makes them.

The default generators belong to the whole process: a task that put its own state into them would spoil the numbers of
the program and of other engines, and get theirs. So a task never touches them. While it runs, its thread carries one
more dispatch key of torch, and for that key each operator that draws has a kernel here, which hands the task's
generator to it. All other operators pass the key by at no cost, as they do with torch's own mode keys: torch traps
random operators inside of `vmap` in the same way. The key is carried by one thread, so no other thread notices.

Not turned, so that they draw as the program does, are threads that a pipeline starts by itself, numpy and Python's
`random`, fused attention with dropout, and CUDA graphs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from omni_core.worker.task.dispatch_modes import has_dispatch_modes, is_traced
from omni_core.worker.task.generators import TaskRandom
from omni_core.worker.task.random_functions import install_functions

# A key that torch reserves for modes outside of its own; nothing else of torch uses it.
_KEY_NAME = "TESTING_ONLY_GenericMode"
_KEY = torch._C._dispatch_key_parse(_KEY_NAME)
_KEYS = torch._C.DispatchKeySet(_KEY)
# Draws without taking a generator, and not by way of an operator that does: on accelerators, where it is one kernel.
_WITHOUT_GENERATOR = ("native_dropout",)


class _Thread(threading.local):
    random: TaskRandom | None = None


_thread = _Thread()
_libraries: list[torch.library.Library] = []
_install_lock = threading.Lock()
_swap_lock = threading.Lock()


def current_random() -> TaskRandom | None:
    """Return what the running thread draws from; None if that is the program's default generators."""
    return _thread.random


def draw_from(random: TaskRandom | None) -> None:
    """Let the running thread draw from a task's generators; None: from the program's."""
    _thread.random = random
    torch._C._dispatch_tls_set_dispatch_key_included(_KEY, random is not None)


@contextmanager
def drawing_from(random: TaskRandom | None) -> Iterator[None]:
    """Let the running thread draw from a task's generators inside of the `with` block."""
    before = _thread.random
    draw_from(random)
    try:
        yield
    finally:
        draw_from(before)


def install_draws() -> None:
    """Give torch the kernels, once in a process. Without this `draw_from` has no effect."""
    with _install_lock:
        if _libraries:
            return
        library: Any = torch.library.Library
        everything = library("_", "IMPL")
        everything.fallback(torch.library.fallthrough_kernel, _KEY_NAME)
        aten = library("aten", "IMPL", _KEY_NAME)
        for name, kernel in _kernels():
            aten.impl(name, kernel, with_keyset=True)
        # Operators of higher order know no fallbacks: each is told what to pass by, and so are those to come.
        torch._ops._HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS.append(_KEY)
        operators: dict[str, Any] = torch._ops._higher_order_ops
        for operator in operators.values():
            operator.fallthrough(_KEY)
        install_functions(current_random)
        _libraries.extend([everything, aten])


def _kernels() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the full name of each operator that draws, with its kernel."""
    drawing: dict[str, list[Any]] = {}
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("aten::") and _generator_index(schema) is not None:
            drawing.setdefault(schema.name, []).append(schema)
    for name, schemas in drawing.items():
        packet = getattr(torch.ops.aten, name.removeprefix("aten::"))
        signatures = {}
        for schema in schemas:
            operator = getattr(packet, schema.overload_name or "default")
            index = _generator_index(schema)
            assert index is not None
            signatures[_signature(schema)] = operator
            yield operator.name(), _with_task_generator(operator, operator, index)
        # `rand` and the like draw by way of others, but not where a dispatch mode comes in between.
        for overload in packet.overloads():
            operator = getattr(packet, overload)
            schema = operator._schema
            if _generator_index(schema) is None and (twin := signatures.get(_signature(schema))) is not None:
                yield operator.name(), _with_task_generator(operator, twin, len(schema.arguments))
    for name in _WITHOUT_GENERATOR:
        operator = getattr(torch.ops.aten, name).default
        yield operator.name(), _in_task_state(operator)


def _generator_index(schema: Any) -> int | None:
    return next((index for index, one in enumerate(schema.arguments) if "Generator" in str(one.type)), None)


def _signature(schema: Any) -> tuple[tuple[str, str], ...]:
    return tuple((one.name, str(one.type)) for one in schema.arguments if "Generator" not in str(one.type))


def _with_task_generator(operator: Any, twin: Any, index: int) -> Callable[..., Any]:
    """Return the kernel of an operator, whose `twin` takes a generator as argument number `index` or by name."""

    def kernel(_keys: Any, *args: Any, **kwargs: Any) -> Any:
        given = args[index] if len(args) > index else kwargs.get("generator")
        generator = _generator_for(given, args, kwargs)
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            if generator is None:
                return operator(*args, **kwargs)
            kwargs["generator"] = generator
            return twin(*args[:index], **kwargs)

    return kernel


def _in_task_state(operator: Any) -> Callable[..., Any]:
    """Return the kernel of an operator that knows only default generators: they have the task's state meanwhile."""

    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
        generator = _generator_for(None, args, kwargs)
        if generator is not None and generator.device.type == "cpu" and not has_dispatch_modes():
            return operator.redispatch(keys.remove(_KEY), *args, **kwargs)  # it draws by way of others, which are seen
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            if generator is None:
                return operator(*args, **kwargs)
            default = _default_generator(generator.device)
            assert default is not None
            with _swap_lock:
                outside = default.get_state()
                default.set_state(generator.get_state())
                try:
                    return operator(*args, **kwargs)
                finally:
                    generator.set_state(default.get_state())
                    default.set_state(outside)

    return kernel


def _generator_for(given: torch.Generator | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the generator that a call draws from instead of `given`; None if it is to be left as it is."""
    random = _thread.random
    if random is None:
        return None
    if given is not None:
        default = _default_generator(given.device)
        return random.generator(given.device) if default is not None and _is_same(given, default) else None
    device = _device_of(args, kwargs)
    if device.type == "meta" or is_traced():
        return None
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return None  # a graph knows the generators that it draws from: the default ones
    return random.generator(device)


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    if (device := kwargs.get("device")) is not None:
        return torch.device(device)
    for value in (*args, kwargs.get("out")):
        if isinstance(value, torch.Tensor):
            return value.device
    return torch.get_default_device()


def _is_same(one: Any, other: Any) -> bool:
    # On its way to a kernel a generator becomes another Python object, of the same C++ one.
    return bool(one._cdata == other._cdata)


def _default_generator(device: torch.device) -> torch.Generator | None:
    if device.type == "cpu":
        return torch.default_generator
    module: Any = torch.get_device_module(device)
    if device.type == "mps":
        return module._get_default_mps_generator()  # type: ignore[no-any-return]
    generators = getattr(module, "default_generators", ())
    return generators[device.index] if device.index < len(generators) else None
