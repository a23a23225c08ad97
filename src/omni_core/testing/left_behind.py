"""What a pipeline may change in its process and leave so, for the fault `leave`."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def _torch() -> Any:
    import torch  # only when it is changed: the suite is read without it

    return torch


CHANGES: dict[str, Callable[[], object]] = {
    "default dtype": lambda: _torch().set_default_dtype(_torch().float64),
    "default device": lambda: _torch().set_default_device("meta"),
    "gradients": lambda: _torch().set_grad_enabled(True),
    "autocast": lambda: _torch().autocast("cpu", _torch().bfloat16).__enter__(),
    "seed of torch": lambda: _torch().manual_seed(0),
    "deterministic algorithms": lambda: _torch().use_deterministic_algorithms(True),
    "matmul precision": lambda: _torch().set_float32_matmul_precision("medium"),
    "seed of numpy": lambda: np.random.seed(0),
    "errors of numpy": lambda: np.seterr(all="raise"),
    "seed of Python": lambda: random.seed(0),
    "recursion limit": lambda: sys.setrecursionlimit(400),
    "garbage collection": gc.disable,
    "warnings as errors": lambda: warnings.simplefilter("error"),
    "working directory": lambda: os.chdir("/"),
    "logging": lambda: logging.disable(logging.CRITICAL),
    "socket timeout": lambda: socket.setdefaulttimeout(0.001),
}


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Make what belongs to the program what it was before, where a pipeline in its own process has changed it."""
    limit, is_collecting, folder = sys.getrecursionlimit(), gc.isenabled(), os.getcwd()  # noqa: PTH109
    timeout, disabled = socket.getdefaulttimeout(), logging.root.manager.disable
    with warnings.catch_warnings():
        try:
            yield
        finally:
            sys.setrecursionlimit(limit)
            if is_collecting:
                gc.enable()
            os.chdir(folder)
            socket.setdefaulttimeout(timeout)
            logging.disable(disabled)
