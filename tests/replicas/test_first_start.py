"""How long an executor waits for the first start of a replica, where something stands still."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from omni_core.errors import StartupError
from omni_core.replicas import executor as executor_module
from omni_core.replicas.executor import ReplicaExecutor


def wait(times: Iterator[float], first_start: Future[None], due: float | None) -> None:
    executor: Any = SimpleNamespace(_loop=SimpleNamespace(time=lambda: next(times)))
    replica: Any = SimpleNamespace(index=0, first_start=first_start, start_clock=SimpleNamespace(due=due))
    ReplicaExecutor._wait_for_first_start(executor, replica)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "_LOOK_S", 0.001)


def test_a_program_that_stood_still_is_not_late() -> None:
    """The loop's timers are put off by as long as it stood: it has not handled what came meanwhile."""
    first_start: Future[None] = Future()

    def times() -> Iterator[float]:
        yield 1.0
        yield 1000.0
        first_start.set_result(None)
        yield 1000.1

    wait(times(), first_start, 10.0)


def test_a_loop_that_is_blocked_is_not_waited_for() -> None:
    with pytest.raises(StartupError, match="Replica 0"):
        wait(itertools.count(1.0, 0.5), Future(), 10.0)
