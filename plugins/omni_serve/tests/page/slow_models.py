"""Pipelines that stop in the middle until a file is there, so that a page can be looked at meanwhile."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from omni_core.testing import pipelines

# The first forward of all that waits.
HELD = 10
_PATIENCE_S = 60.0


def video() -> Any:
    return _held(pipelines.video())


def audio() -> Any:
    return _held(pipelines.audio())


def _held(pipeline: Any) -> Any:
    gate, tick, number = Path(os.environ["GATE"]), threading.Event(), 0

    def wait(*_: Any) -> None:
        nonlocal number
        number += 1
        if number < HELD:
            return
        for _ in range(int(_PATIENCE_S / 0.02)):
            if gate.exists():
                return
            tick.wait(0.02)

    pipeline.transformer.register_forward_pre_hook(wait)
    return pipeline
