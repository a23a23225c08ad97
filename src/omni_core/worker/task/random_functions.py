"""`torch.manual_seed`, `torch.get_rng_state` and the like, turned to the task that calls them.

They are no operators: they act on the default generators themselves. Outside of tasks they do what they always did.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch

from omni_core.worker.task.generators import TaskRandom

# Gives what the running thread draws from, None if that is the default generators.
Current = Callable[[], TaskRandom | None]
# The name by which the functions of `torch.random` find what they act on, and the one that they get instead.
_NAME, _OTHER_NAME = "default_generator", "_omni_generator"
# These have functions of one kind.
_DEVICE_TYPES = ("cuda", "xpu", "mps")


def install_functions(current: Current) -> None:
    """Put the functions in place, in this process. Must be called once.

    Args:
        current: Tells whose they are.
    """
    # The functions of `torch.random` stay what they are, for those who have imported them by name before, and so does
    # the generator: only the name by which these functions find it is another.
    setattr(torch.random, _OTHER_NAME, _DefaultGenerator(current))
    for function in vars(torch.random).values():
        if isinstance(function, types.FunctionType) and _NAME in function.__code__.co_names:
            names = (_OTHER_NAME if name == _NAME else name for name in function.__code__.co_names)
            function.__code__ = function.__code__.replace(co_names=tuple(names))
    for device_type in _DEVICE_TYPES:
        for name, function in _functions_of(device_type).items():
            _replace(device_type, name, function, current)


class _DefaultGenerator:
    """What the functions of `torch.random` act on: the task's generator, or torch's own."""

    def __init__(self, current: Current) -> None:
        self._current = current

    def __getattr__(self, name: str) -> Any:
        random = self._current()
        return getattr(torch.default_generator if random is None else random.generator(), name)


def _functions_of(device_type: str) -> dict[str, Callable[..., Any]]:
    """Return what the functions of a module such as `torch.cuda` do in a task, by name."""
    module: Any = getattr(torch, device_type)

    def generator(random: TaskRandom, device: Any = device_type) -> torch.Generator:
        return random.generator(torch.device(device_type, device) if isinstance(device, int) else torch.device(device))

    def get_rng_state(random: TaskRandom, device: Any = device_type) -> torch.Tensor:
        return generator(random, device).get_state()

    def set_rng_state(random: TaskRandom, new_state: torch.Tensor, device: Any = device_type) -> None:
        generator(random, device).set_state(new_state)

    def manual_seed(random: TaskRandom, seed: int) -> None:
        # Without such a device it does nothing, as ever.
        if module.is_available():
            generator(random).manual_seed(int(seed))

    def manual_seed_all(random: TaskRandom, seed: int) -> None:
        random.seed_all(device_type, int(seed))

    def seed(random: TaskRandom) -> None:
        if module.is_available():
            generator(random).seed()

    def seed_all(random: TaskRandom) -> None:
        random.seed_all(device_type, torch.Generator().seed())

    def initial_seed(random: TaskRandom) -> int:
        return generator(random).initial_seed()

    functions: list[Any] = [get_rng_state, set_rng_state, manual_seed, manual_seed_all, seed, seed_all, initial_seed]
    return {function.__name__: function for function in functions}


def _replace(device_type: str, name: str, in_task: Callable[..., Any], current: Current) -> None:
    module: Any = getattr(torch, device_type)
    original = getattr(module, name, None)
    if original is None:
        return

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        random = current()
        return original(*args, **kwargs) if random is None else in_task(random, *args, **kwargs)

    # The functions of several devices at once call those of one by their names in `torch.cuda.random`.
    for place in (module, getattr(module, "random", None)):
        if getattr(place, name, None) is original:
            setattr(place, name, function)
