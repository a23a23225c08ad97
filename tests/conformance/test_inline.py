"""The inline executor passes the suite that every executor must pass."""

from __future__ import annotations

from omni_core.testing import ExecutorConformance


class TestInline(ExecutorConformance):
    executor_class = "inline"
