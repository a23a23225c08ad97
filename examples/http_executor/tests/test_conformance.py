"""The executor passes the suite that every executor of omni must pass. Needs the distribution to be installed."""

from __future__ import annotations

from omni_core.testing import ExecutorConformance


class TestHttpExecutor(ExecutorConformance):
    executor_class = "http"
