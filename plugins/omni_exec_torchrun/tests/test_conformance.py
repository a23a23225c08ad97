"""The conformance suite of omni, as any executor's tests inherit it."""

from __future__ import annotations

from omni_core.testing import ExecutorConformance


class TestTorchrun(ExecutorConformance):
    executor_class = "torchrun"
