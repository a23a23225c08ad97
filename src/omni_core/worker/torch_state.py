"""Torch's state of a thread, taken away from one task and given to the next.

Tasks share a thread, but grad mode, inference mode, autocast and the global random generators belong to a task: a
pipeline that is suspended inside `torch.no_grad()` must not switch gradients off for whoever runs meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class TorchState:
    """A snapshot of the running thread's torch state.

    Args:
        device: The device whose global random generator belongs to the state, besides the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._grad = torch.is_grad_enabled()
        # Inference mode is entered and left with a guard object: entering "off" here and leaving it in `restore`
        # brings back exactly the mode that holds now.
        self._guard: Any = None
        self._inference = torch.is_inference_mode_enabled()
        if self._inference:
            self._guard = torch._C._InferenceMode(False)
            self._guard.__enter__()
        self._autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in sorted({"cpu", device.type} - {"meta"})
        ]
        self._autocast_cache = torch.is_autocast_cache_enabled()
        self._random = torch.get_rng_state()
        self._device_random = _device_generator_state(device)

    @property
    def mode(self) -> tuple[object, ...]:
        """What must agree between two tasks whose denoiser calls become one."""
        return (self._grad, self._inference, *self._autocast, self._autocast_cache)

    @property
    def is_grad_enabled(self) -> bool:
        """Whether gradients are recorded."""
        return self._grad and not self._inference

    def restore(self) -> None:
        """Make the running thread's state what it was at the snapshot. May be called once."""
        if self._guard is not None:
            self._guard.__exit__(None, None, None)
            self._guard = None
        torch.set_grad_enabled(self._grad)
        for kind, enabled, dtype in self._autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(self._autocast_cache)
        torch.set_rng_state(self._random)
        if self._device_random is not None:
            torch.get_device_module(self._device).set_rng_state(self._device_random, self._device)

    def seed(self, seed: int) -> None:
        """Make the snapshot's random generators what `torch.manual_seed(seed)` would make them."""
        self._random = torch.Generator().manual_seed(seed).get_state()
        if self._device_random is not None:
            self._device_random = torch.Generator(self._device).manual_seed(seed).get_state()


def generator_states(values: Iterable[Any]) -> torch.Tensor:
    """Return what changes when a random number is drawn from a generator that a call with `values` may use."""
    values = list(values)
    states = [torch.get_rng_state()]
    devices = {value.device for value in values if isinstance(value, torch.Tensor) and value.device.type == "cuda"}
    states.extend(torch.cuda.get_rng_state(device) for device in sorted(devices, key=str))
    states.extend(value.get_state() for value in values if isinstance(value, torch.Generator))
    return torch.cat(states)


def _device_generator_state(device: torch.device) -> torch.Tensor | None:
    if device.type in ("cpu", "meta"):
        return None
    state = torch.get_device_module(device).get_rng_state(device)
    assert isinstance(state, torch.Tensor)
    return state
