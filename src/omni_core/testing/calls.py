"""Functions for `collective_rpc`: each gets the worker as its first argument, and every worker can import them."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Any

from omni_core.testing.injection import InjectedError, UnpicklableError, end_process, wait_for_file


def echo(worker: Any, *values: Any, **named: Any) -> Any:
    """Return what was given: the one value, or all of them."""
    if len(values) == 1 and not named:
        return values[0]
    return values, named


def identify(worker: Any) -> tuple[int, int, int]:
    """Return process id, replica and rank."""
    return os.getpid(), int(getattr(worker, "replica", 0)), int(getattr(worker, "rank", 0))


def is_marked(worker: Any) -> bool:
    """Return whether the hook of a plugin has marked the worker's pipeline."""
    return bool(getattr(worker.pipeline, "is_marked", False))


def raise_error(worker: Any, text: str) -> None:
    """Raise an exception."""
    raise InjectedError(text)


def raise_unpicklable(worker: Any, text: str) -> None:
    """Raise an exception that does not survive pickling."""
    raise UnpicklableError(text, "it was asked to")


def return_lock(worker: Any) -> dict[str, Any]:
    """Return what cannot be pickled."""
    return {"fine": 1, "lock": threading.Lock()}


def describe_lock(worker: Any, value: Any) -> str:
    """Return the type of what was given."""
    return type(value["lock"]).__name__


def wait_then_return(worker: Any, file: str, value: Any) -> Any:
    """Return `value` once `file` exists."""
    wait_for_file(file)
    return value


def touch(worker: Any, folder: str) -> None:
    """Leave a file that says which worker was here."""
    _, replica, rank = identify(worker)
    (Path(folder) / f"{replica}.{rank}").touch()


def end(worker: Any, spared_pid: int) -> None:
    """End the worker's process without a word, unless it is `spared_pid`."""
    end_process("exit", spared_pid)


def make_array(worker: Any, size: int, fill: int) -> Any:
    """Return an array of `size` bytes."""
    import numpy as np

    return np.full(size, fill, dtype=np.uint8)


def add_up(worker: Any, array: Any) -> int:
    """Return the sum of an array."""
    return int(array.sum())


def describe_tensor(worker: Any, tensor: Any) -> tuple[str, tuple[int, ...], float]:
    """Return dtype, shape and sum of a tensor."""
    return str(tensor.dtype), tuple(tensor.shape), float(tensor.float().sum())


def make_tensor(worker: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Return a tensor of ones of the given dtype."""
    import torch

    return torch.ones(shape, dtype=getattr(torch, dtype))


def watch_weights(worker: Any) -> None:
    """Remember the worker's denoiser, without keeping it."""
    worker.conformance_watched = weakref.ref(worker.pipeline.transformer)


def are_weights_there(worker: Any) -> bool:
    """Return whether the denoiser that was remembered still exists."""
    return worker.conformance_watched() is not None
