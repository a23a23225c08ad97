"""Worker processes that end or hang while they start."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from omni_core.errors import StartupError
from omni_core.testing.base import ConformanceBase
from omni_core.testing.bounds import wait_until
from omni_core.testing.families import factory
from omni_core.testing.footprint import HAS_PROC, command_of, descendants


class StartupFaults(ConformanceBase):
    """Crash and hang at start-up."""

    theme = "startup"

    def _need_processes_and_proc(self) -> set[int]:
        self.need_processes(self.shared_engine())
        if not HAS_PROC:
            pytest.skip("not supported: the system has no /proc")
        return set(descendants(os.getpid()))

    def _assert_nothing_left(self, before: set[int]) -> None:
        left: set[int] = set()

        def is_clean() -> bool:
            left.clear()
            left.update(set(descendants(os.getpid())) - before)
            return not left

        try:
            wait_until(is_clean, "no process of the failed start is left", 10.0)
        except AssertionError as error:
            raise AssertionError(f"{error}: {[command_of(pid) for pid in left]}") from None

    @pytest.mark.parametrize(("name", "words"), [("exiting", "17"), ("killed", "SIGKILL")])
    def test_a_worker_that_dies_while_it_loads(self, name: str, words: str) -> None:
        """The start fails within seconds, says how the worker ended, and leaves no process."""
        before = self._need_processes_and_proc()
        begun = time.monotonic()
        with pytest.raises(StartupError, match=words):
            self.engine(model=factory(name), model_options={"spared_pid": os.getpid()}, startup_timeout_s=100.0)
        self.note_seconds("caller knew", time.monotonic() - begun)
        assert time.monotonic() - begun < 50.0
        self._assert_nothing_left(before)

    def test_a_worker_that_hangs_while_it_loads(self) -> None:
        """The start fails after `startup_timeout_s`, and leaves no process."""
        before = self._need_processes_and_proc()
        begun = time.monotonic()
        with pytest.raises(StartupError):
            self.engine(model=factory("hanging"), startup_timeout_s=3.0)
        self.note_seconds("caller knew", time.monotonic() - begun)
        assert time.monotonic() - begun < 20.0
        self._assert_nothing_left(before)

    def test_one_of_two_workers_cannot_start(self, tmp_path: Path) -> None:
        """When a start fails, the workers that did start are ended as well."""
        before = self._need_processes_and_proc()
        self.need_option("data_parallel_size")
        with pytest.raises(StartupError):
            self.engine(
                model=factory("exiting_in_one"),
                model_options={"spared_pid": os.getpid(), "marker": str(tmp_path / "marker")},
                data_parallel_size=2,
            )
        self._assert_nothing_left(before)
