from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_serve.jobs import JobStore


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fast_path() -> Iterator[Path]:
    """A folder on the fastest disk. Not in /dev/shm: tests that run beside these look there for what is left over."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def open_store(fast_path: Path, clock: Clock) -> Iterator[Callable[..., JobStore]]:
    """Opens stores in one folder (`data_dir=None`: in memory), and closes them in the end."""
    with contextlib.ExitStack() as stack:

        def open_one(**options: Any) -> JobStore:
            store = JobStore(**{"data_dir": fast_path / "data", "clock": clock, **options})
            stack.callback(store.close)
            return store

        yield open_one


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, open_store: Callable[..., JobStore]) -> JobStore:
    return open_store() if request.param == "folder" else open_store(data_dir=None)
