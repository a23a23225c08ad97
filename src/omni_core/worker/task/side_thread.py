"""Where autoencoders encode and decode while the denoising of other requests goes on."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from omni_core.serial_thread import SerialThread
from omni_core.worker.task.random_draws import current_random, drawing_from
from omni_core.worker.task.torch_state import TorchState

_MISSING = object()


class SideThread:
    """Runs calls of autoencoders one after another in a thread of its own.

    Args:
        device: Where the autoencoders compute.
        on_done: Called in that thread each time that a call has ended.
    """

    def __init__(self, device: torch.device, on_done: Callable[[], None]) -> None:
        self._thread = SerialThread("omni-autoencoder")
        self._device = device
        self._on_done = on_done
        self._open: set[Future[Any]] = set()

    def submit(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """Run a method as the caller would: in its torch state, with its random numbers and context variables.

        Returns:
            A future of its result.
        """
        state, random = TorchState(self._device), current_random()

        def run() -> Any:
            with drawing_from(random), state.applied():
                return method(*args, **kwargs)

        future = self._thread.submit(run)
        self._open.add(future)
        future.add_done_callback(self._done)
        return future

    def wait_for_all(self) -> None:
        """Wait until nothing runs here any more."""
        for future in list(self._open):
            future.exception()

    def close(self) -> None:
        """End the thread once the call that runs has ended."""
        self._thread.close()

    def _done(self, future: Future[Any]) -> None:
        self._open.discard(future)
        self._on_done()


def has_room_for_side_thread(device: torch.device) -> bool:
    """Whether a second thread can compute without taking cores from the forward passes.

    More OpenMP threads than cores are ruinous: forwards were seen to take 200 times as long.
    """
    if device.type != "cpu":
        return True
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 * torch.get_num_threads() <= cores


def take_over(context: contextvars.Context) -> None:
    """Set the running thread's context variables to what they have become in a context."""
    for variable, value in context.items():
        if variable.get(_MISSING) is not value:
            variable.set(value)
