"""Where autoencoders encode and decode while the denoising of other requests goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from omni_core.serial_thread import SerialThread


class SideThread:
    """Runs calls of autoencoders one after another in a thread of its own.

    Args:
        on_done: Called in that thread each time that a call has ended.
    """

    def __init__(self, on_done: Callable[[], None]) -> None:
        self._thread = SerialThread("omni-autoencoder")
        self._on_done = on_done
        self._open: set[Future[Any]] = set()

    def submit(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """Run a method under the caller's grad mode and autocast.

        Returns:
            A future of its result.
        """
        inference = torch.is_inference_mode_enabled()
        autocast = {kind: torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)}

        def run() -> Any:
            with torch.inference_mode(inference), torch.set_grad_enabled(False):
                return _under_autocast(autocast, lambda: method(*args, **kwargs))

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


def _under_autocast(dtypes: dict[str, torch.dtype], call: Callable[[], Any]) -> Any:
    if not dtypes:
        return call()
    kind, dtype = dtypes.popitem()
    with torch.autocast(kind, dtype=dtype):
        return _under_autocast(dtypes, call)
