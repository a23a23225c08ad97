from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from omni_core.testing.warm_python import WarmPython
from serving import FACTORIES, ServeProcess, ThreadServer, process_server, thread_server


@pytest.fixture(scope="session")
def running() -> Iterator[ThreadServer]:
    """A server with the small model."""
    with thread_server() as made:
        yield made


@pytest.fixture(scope="session")
def editing() -> Iterator[ThreadServer]:
    """A server whose pipeline takes pictures."""
    with thread_server(model=f"{FACTORIES}:image_to_image") as made:
        yield made


@pytest.fixture(scope="session")
def gated() -> Iterator[ThreadServer]:
    """A server whose forwards a test can hold up."""
    with thread_server(model="gated_model:build") as made:
        yield made


@pytest.fixture
def serve_process(warm_python: WarmPython) -> ServeProcess:
    """Run `omni serve` in a process that need not import torch."""
    return functools.partial(process_server, python=warm_python.command())
