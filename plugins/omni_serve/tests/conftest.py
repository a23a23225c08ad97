from __future__ import annotations

import functools

import pytest

from omni_core.testing.warm_python import WarmPython
from serving import ServeProcess, process_server


@pytest.fixture
def serve_process(warm_python: WarmPython) -> ServeProcess:
    """Run `omni serve` in a process that need not import torch."""
    return functools.partial(process_server, python=warm_python.command())
