"""Factories that go wrong."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

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
