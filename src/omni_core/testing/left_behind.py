"""What a pipeline may change in its process and leave so, for the fault `leave`."""

from __future__ import annotations

import gc
import logging
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable

import numpy as np
import torch


def _autocast() -> None:
    torch.autocast("cpu", torch.bfloat16).__enter__()  # type: ignore[no-untyped-call]


CHANGES: dict[str, Callable[[], object]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "gradients": lambda: torch.set_grad_enabled(True),
    "autocast": _autocast,
    "seed of torch": lambda: torch.manual_seed(0),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
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
