from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

# Before torch is imported: one thread per forward, so that results repeat to the bit and no core is oversubscribed.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No configuration of the machine on which the tests run reaches them."""
    for name in list(os.environ):
        if name.startswith("OMNI_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    """Every engine thread that a test starts has ended when the test has."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("omni-"):
            thread.join(10)
            assert not thread.is_alive(), f"{thread.name} is left over"


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
