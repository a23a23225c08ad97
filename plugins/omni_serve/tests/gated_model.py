"""A small pipeline in this process whose forwards are counted, and which can be held up before a forward."""

from __future__ import annotations

import threading
from typing import Any

from omni_core.testing.pipelines import picture


class Gate:
    """Counts forwards; the one of number `hold_at` and those after it wait while the gate is shut."""

    def __init__(self) -> None:
        self.forwards = 0
        self.hold_at: int | None = None
        self.is_holding = threading.Event()
        self.opened = threading.Event()

    def shut(self, after: int) -> None:
        self.is_holding.clear()
        self.opened.clear()
        self.forwards = 0
        self.hold_at = after

    def open(self) -> None:
        self.hold_at = None
        self.opened.set()

    def __call__(self, *_: Any) -> None:
        self.forwards += 1
        if self.hold_at is not None and self.forwards >= self.hold_at:
            self.is_holding.set()
            self.opened.wait(60.0)


gate = Gate()


def build() -> Any:
    pipeline = picture()
    pipeline.transformer.register_forward_pre_hook(gate)
    return pipeline
