"""A third party's executor of five methods passes, and what it does not declare is skipped with a reason."""

from __future__ import annotations

import pytest

from conformance.five_methods import FiveMethods
from omni_core.testing import ExecutorConformance


@pytest.mark.sampled
class TestFiveMethods(ExecutorConformance):
    executor_class = FiveMethods
