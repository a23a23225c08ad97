"""Factories that go wrong, and one that draws."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from omni_core.testing.pipelines import class_conditional


def one_of_two_dies(folder: str) -> Any:
    """The second process that comes here ends; the first one loads."""
    try:
        (Path(folder) / "first").touch(exist_ok=False)
    except FileExistsError:
        os._exit(17)
    return class_conditional()


def hangs() -> Any:
    threading.Event().wait(300)


def dies_while(file: str) -> Any:
    if Path(file).exists():
        os._exit(3)
    return class_conditional()


class DrawsBars:
    """A pipeline that draws a bar of its own."""

    def __call__(self, prompt: str) -> dict[str, list[int]]:
        sys.stdout.write(f"{prompt} begins\n")
        sys.stdout.flush()
        for _ in tqdm(range(3), mininterval=0, leave=prompt == "good"):
            if prompt == "bad":
                sys.stderr.write("bad stops here\n")
                raise RuntimeError("in the middle")
        return {"numbers": [1]}


def draws_bars() -> Any:
    sys.stderr.write("loading begins\n")
    for _ in tqdm(range(3), desc="Loading pipeline components...", mininterval=0):
        pass
    sys.stderr.write("the loader has ended\n")
    return DrawsBars()


def draws() -> Any:
    """A pipeline whose denoiser, scheduler and autoencoder draw from torch's global generator."""
    pipeline = class_conditional()
    for part, name in ((pipeline.transformer, "forward"), (pipeline.scheduler, "step"), (pipeline.vae, "decode")):
        part.__class__ = _noisy(type(part), name)
    return pipeline


def _noisy(real: type[Any], name: str) -> type[Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = getattr(real, name)(self, *args, **kwargs)
        first = next(iter(result))
        result[first] = result[first] + 0.1 * torch.randn(result[first].shape)
        return result

    return type(real.__name__, (real,), {name: method})
