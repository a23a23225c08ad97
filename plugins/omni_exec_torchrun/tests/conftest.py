from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

# Before torch is imported anywhere: results repeat to the bit, and no core is oversubscribed.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import psutil
import pytest


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No configuration of the machine on which the tests run reaches them."""
    for name in list(os.environ):
        if name.startswith("OMNI_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every process and thread that a test starts has ended when the test has."""
    if request.cls is not None:  # the conformance suite shares engines, and looks after that itself
        yield
        return
    # Not their children: an engine that several tests share replaces its workers.
    before = {process.pid for process in psutil.Process().children()}
    threads = set(threading.enumerate())
    yield
    # An engine that several tests share replaces its launcher, too; the last of them sees what is left.
    is_shared = "engine" in request.fixturenames
    for process in psutil.Process().children():
        assert process.pid in before or is_shared, f"left over: {process}"
    for thread in set(threading.enumerate()) - threads:
        assert not thread.name.startswith("omni-"), f"{thread.name} is left over"


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Wait for a condition, with a bound, instead of sleeping."""

    def wait(condition: Callable[[], bool], timeout: float = 20.0) -> None:
        tick = threading.Event()
        for _ in range(int(timeout / 0.005)):
            if condition():
                return
            tick.wait(0.005)
        raise AssertionError(f"not within {timeout} s")

    return wait
