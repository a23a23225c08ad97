"""What the tests of the fork server call in workers."""

from __future__ import annotations

import importlib
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def surroundings(worker: Any) -> dict[str, Any]:
    mask = os.umask(0o022)
    os.umask(mask)
    return {
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "umask": mask,
        "cores": os.sched_getaffinity(0),
        "threads": torch.get_num_threads(),
    }


def value_of(worker: Any, module: str) -> Any:
    return importlib.import_module(module).VALUE


def random_numbers(worker: Any) -> tuple[float, float]:
    return random.random(), float(np.random.rand())


def files(worker: Any) -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except OSError:  # that by which the folder was read
            continue
    return [what for what in found if not what.startswith("/proc")]
