"""Torch's state of a thread, taken away from one task and given to the next.

Tasks share a thread, but grad mode, inference mode, autocast and torch's modes (`with torch.device(…)` is one) belong
to a task: a pipeline that is suspended inside `torch.no_grad()` must not switch gradients off for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from omni_core.worker.task import dispatch_modes

# Those of tasks that were dropped where they stood.
_left_guards: list[Any] = []


class TorchState:
    """A snapshot of the running thread's torch state. Making one changes nothing.

    Args:
        device: The device whose autocast belongs to the state, besides the CPU's and CUDA's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._grad = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        self._autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in sorted({"cpu", "cuda", device.type} - {"meta"})
        ]
        self._autocast_cache = torch.is_autocast_cache_enabled()
        self._modes = _Modes()
        # Inference mode is entered and left with a guard object. `suspend` enters that of the thread's own state, and
        # leaving it in `resume` brings back exactly the mode that holds now.
        self._guard: Any = None

    def __del__(self) -> None:
        # A guard that goes away changes the mode of the thread in which that happens, whatever runs there.
        if self._guard is not None:
            _left_guards.append(self._guard)

    @property
    def mode(self) -> tuple[object, ...]:
        """What must agree between two tasks whose denoiser calls become one."""
        return (self._grad, self._inference, *self._autocast, self._autocast_cache, *self._modes.identity)

    @property
    def is_grad_enabled(self) -> bool:
        """Whether gradients are recorded."""
        return self._grad and not self._inference

    def suspend(self, outside: TorchState) -> None:
        """Take this state, which is in place, out of the thread. Plain values stay, as the next state sets them.

        Args:
            outside: The thread's state before the first task was put in place.
        """
        outside._modes.put_in()
        if self._inference != outside._inference:
            self._guard = torch._C._InferenceMode(outside._inference)
            self._guard.__enter__()

    def resume(self) -> None:
        """Put this state in place again, after that of another task or the thread's own."""
        if self._guard is not None:
            self._guard.__exit__(None, None, None)
            self._guard = None
        self._set_values()
        self._modes.put_in()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put this state in place in another thread, inside of the `with` block."""
        outside = TorchState(self._device)
        uses_autocast = any(enabled for _, enabled, _ in self._autocast)
        try:
            with torch.inference_mode(self._inference):
                self._set_values()
                self._modes.put_in()
                if uses_autocast:
                    torch.autocast_increment_nesting()
                yield
        finally:
            if uses_autocast and torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()
            outside._modes.put_in()
            outside._set_values()

    def _set_values(self) -> None:
        torch.set_grad_enabled(self._grad)
        for kind, enabled, dtype in self._autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(self._autocast_cache)


class _Modes:
    """The modes on the running thread's two stacks, such as `with torch.device(…)` and `FlopCounterMode`."""

    def __init__(self) -> None:
        # Nearly always there are none.
        self._functions = dispatch_modes.function_modes()
        self._dispatches = dispatch_modes.dispatch_modes()

    @property
    def identity(self) -> tuple[int, ...]:
        return tuple(map(id, (*self._functions, *self._dispatches)))

    def put_in(self) -> None:
        """Make these the running thread's, in place of those that it has."""
        dispatch_modes.put_in(self._functions, self._dispatches)
