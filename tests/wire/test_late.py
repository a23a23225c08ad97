"""A driver that has stood still does not take that for the silence of its workers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from omni_core.replicas.loop import run_in
from omni_core.replicas.watchdog import Watchdog
from omni_core.wire import reactor as reactor_module
from omni_core.wire.reactor import Reactor

BOUND_S = 20.0


class BusyWorker:
    """What the watchdog sees of a worker that is busy and answers as soon as it is asked."""

    num_pending = 1

    def __init__(self) -> None:
        self.dead: list[str] = []
        self.asked_at: float | None = None
        self.pings = 0

    def silent_for(self, now: float) -> float:
        return 0.0 if self.asked_at is None else now - self.asked_at

    def ping(self) -> None:
        self.pings += 1

    def forgive(self, seconds: float) -> None:
        if self.asked_at is not None:
            self.asked_at += seconds

    def declare_dead(self, what: str) -> None:
        self.dead.append(what)
        self.num_pending = 0


@pytest.fixture
def reactor(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(reactor_module, "_LATE_S", 0.1)
    made = Reactor("omni-test-reactor")
    yield made
    made.stop()


@pytest.mark.parametrize("what", ["step", "silence"])
@pytest.mark.parametrize("stands_still", [True, False])
def test_time_in_which_the_driver_stood_still_does_not_count(
    reactor: Reactor, what: str, stands_still: bool, wait_until: Callable[..., None]
) -> None:
    import time

    worker = BusyWorker()
    limit_s = 0.8
    watchdog = Watchdog(
        reactor, lambda: [worker], limit_s if what == "step" else None, limit_s if what == "silence" else None
    )  # type: ignore[arg-type,return-value]
    began = time.monotonic()
    if what == "step":
        watchdog.step_since = began
    else:
        worker.asked_at = began
    watchdog.look_after()
    if stands_still:
        reactor.call_soon(lambda: threading.Event().wait(1.5))  # time itself is what is tried
    wait_until(lambda: worker.dead, timeout=BOUND_S)
    took = time.monotonic() - began
    assert (took > 2.0) if stands_still else (took < 2.0), "it is killed in the end, as it never answers"


def test_timers_are_put_off_by_what_the_thread_was_late(reactor: Reactor) -> None:
    import time

    fired: dict[str, float] = {}
    done = threading.Event()

    def fire(name: str) -> None:
        fired[name] = time.monotonic()
        if len(fired) == 2:
            done.set()

    began = time.monotonic()
    run_in(reactor, lambda: reactor.call_later(0.5, lambda: fire("short")))
    run_in(reactor, lambda: reactor.call_later(1.0, lambda: fire("long")))
    reactor.call_soon(lambda: threading.Event().wait(2.0))
    assert done.wait(BOUND_S)
    assert fired["short"] - began > 2.2
    assert 0.3 < fired["long"] - fired["short"] < 1.0, "in their order, and as far apart"


def test_a_timer_longer_than_the_system_can_wait_harms_nobody(reactor: Reactor) -> None:
    done = threading.Event()
    run_in(reactor, lambda: reactor.call_later(1e12, lambda: None))
    run_in(reactor, lambda: reactor.call_later(0.01, done.set))
    assert done.wait(BOUND_S)
    run_in(reactor, lambda: None)
    assert reactor.is_running
