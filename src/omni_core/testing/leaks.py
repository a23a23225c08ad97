"""What is left over, and what an idle engine costs."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

import pytest

from omni_core.errors import OmniError
from omni_core.testing.base import ConformanceBase
from omni_core.testing.bounds import wait_until
from omni_core.testing.families import factory
from omni_core.testing.footprint import HAS_PROC, Footprint, cpu_seconds, descendants, is_held_by_others
from omni_core.testing.injection import fault

_KINDS = ["threads", "descriptors", "children", "shared_memory"]
_NUM_ENGINES = 2
_NUM_REQUESTS = 100
# Share of a core that an idle engine may use, and for how long it is watched.
_IDLE_SHARE = 0.02
_IDLE_S = 2.0


class Leaks(ConformanceBase):
    """Leaks and idle load."""

    theme = "leaks"

    def _measure(self, name: str, work: Callable[[], None]) -> dict[str, list[str]]:
        """Do something and return what it left over, by kind. It is done once for all the tests that look at it."""
        if not HAS_PROC:
            pytest.skip("not supported: the system has no /proc")
        if name not in self._measured:
            before = Footprint.take()
            work()
            left: dict[str, list[str]] = {}

            def is_clean() -> bool:
                now = Footprint.take()
                left.update({kind: now.more_than(before, kind) for kind in _KINDS})
                if left["shared_memory"]:
                    own = {os.getpid(), *descendants(os.getpid())}
                    left["shared_memory"] = [entry for entry in left["shared_memory"] if not _is_others(entry, own)]
                return not any(left.values())

            with contextlib.suppress(AssertionError):  # the tests say what is left
                wait_until(is_clean, "nothing is left over", min(10.0, self.patience_s))
            self._measured[name] = left
        measured: dict[str, list[str]] = self._measured[name]
        return measured

    def _use_engines(self, number: int = _NUM_ENGINES) -> None:
        for _ in range(number):
            engine = self.engine()
            self.assert_serves(engine)
            self.close(engine)
        self._engines.clear()

    @pytest.mark.parametrize("kind", _KINDS)
    def test_engines_leave_nothing(self, kind: str) -> None:
        """Two engines that were started, used and closed leave no thread, descriptor, process or shared memory."""
        if "engines" not in self._measured:
            self.close_shared_engines()
            self._use_engines(1)  # what is made once and kept for the next engine is no leak
        assert self._measure("engines", self._use_engines)[kind] == []

    @pytest.mark.parametrize("kind", _KINDS)
    def test_requests_leave_nothing(self, kind: str) -> None:
        """A hundred requests, some of which fail or are aborted, leave nothing in a running engine."""

        def use() -> None:
            engine = self.shared_engine()
            requests = [
                self.request(seed=seed, num_inference_steps=2, fault=fault("raise") if seed % 10 == 9 else None)
                for seed in range(_NUM_REQUESTS)
            ]
            handles = engine.submit_all(requests)
            for handle in handles[5::10]:
                handle.abort()
            for handle in handles:
                self.result(handle)

        if "requests" not in self._measured:
            self.close_shared_engines()
            use()
        assert self._measure("requests", use)[kind] == []

    @pytest.mark.parametrize("kind", _KINDS)
    def test_a_failed_start_leaves_nothing(self, kind: str) -> None:
        """A start that fails gives back what it had taken."""

        def fail() -> None:
            with pytest.raises(OmniError):
                self.engine(model=factory("raising"))

        if "failed starts" not in self._measured:
            self.close_shared_engines()
            fail()
        assert self._measure("failed starts", fail)[kind] == []

    def test_idle_cpu(self) -> None:
        """An engine without work uses less than 2 % of a core, in this process and in its workers together."""
        if not HAS_PROC:
            pytest.skip("not supported: the system has no /proc")
        self.close_shared_engines()
        engine = self.engine()
        self.assert_serves(engine)
        shares = []
        for _ in range(3):  # other work in this process, such as a collection of garbage, is not the engine's
            shares.append(self._share_while_idle())
            if shares[-1] < _IDLE_SHARE:
                break
        self.note_seconds("idle CPU, seconds in a second", min(shares))
        assert min(shares) < _IDLE_SHARE

    def _share_while_idle(self) -> float:
        before, begun = self._cpu_seconds(), time.monotonic()
        threading.Event().wait(_IDLE_S)  # the time that is watched, not a wait for something
        after, took = self._cpu_seconds(), time.monotonic() - begun
        workers = sum(seconds - before[1].get(pid, 0.0) for pid, seconds in after[1].items())
        return (after[0] - before[0] + workers) / took

    def _cpu_seconds(self) -> tuple[float, dict[int, float]]:
        return time.process_time(), {pid: cpu_seconds(pid) for pid in descendants(os.getpid())}


def _is_others(entry: str, own: set[int]) -> bool:
    """Return whether shared memory of a footprint belongs to a program of somebody else's."""
    name, _, what = entry.partition(" ")
    return what == "in /dev/shm" and is_held_by_others(name, own)
