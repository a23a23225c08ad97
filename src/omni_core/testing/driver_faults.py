"""The process that holds the engine ends: nothing of it may stay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omni_core.testing.base import ConformanceBase
from omni_core.testing.bounds import bounded, wait_until
from omni_core.testing.footprint import (
    HAS_PROC,
    command_of,
    descendants,
    identity,
    is_alive,
    is_held_by_others,
    shared_memory_entries,
)

# Seconds within which everything must be gone; a program that ends orderly needs time to close its engine.
_GONE_S = {"SIGKILL": 5.0, "SIGTERM": 10.0, "SIGINT": 15.0}


class DriverFaults(ConformanceBase):
    """End of the driver."""

    theme = "driver"

    @pytest.mark.parametrize("loaded", [False, True], ids=["idle", "loaded"])
    @pytest.mark.parametrize("which", list(_GONE_S))
    def test_the_driver_ends(self, which: str, loaded: bool, tmp_path: Path) -> None:
        """Its workers, their shared memory and their helpers are gone seconds after it was signalled."""
        self.need_processes(self.shared_engine())
        if not HAS_PROC:
            pytest.skip("not supported: the system has no /proc")
        settings = {"config": self._settings(), "loaded": loaded}
        entries = shared_memory_entries()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with (tmp_path / "stderr").open("w+") as stderr:
            driver = subprocess.Popen(  # noqa: S603  # this very Python
                [sys.executable, "-m", "omni_core.testing.driver", json.dumps(settings)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
                cwd=tmp_path,
                start_new_session=True,
            )
            try:
                assert driver.stdout is not None
                line = bounded(driver.stdout.readline, "starting the driver", 100.0)
                stderr.seek(0)
                assert line, stderr.read()
                processes = [identity(pid) for pid in (driver.pid, *descendants(driver.pid))]
                assert len(processes) > 1, "the driver has no workers"
                os.kill(driver.pid, signal.Signals[which])
                self._assert_all_end(driver, processes, which, entries)
            finally:
                driver.kill()
                driver.wait(10.0)
                assert driver.stdout is not None
                driver.stdout.close()

    def _assert_all_end(
        self, driver: subprocess.Popen[str], processes: list[tuple[int, str]], which: str, entries: set[str]
    ) -> None:
        left: list[tuple[int, str]] = []
        shared: list[str] = []

        def are_gone() -> bool:
            driver.poll()
            left[:] = [process for process in processes if is_alive(process)]
            # What a program of somebody else's leaves behind for a moment is not there the next time.
            shared[:] = (
                [] if left else [e for e in shared_memory_entries() - entries if not is_held_by_others(e, set())]
            )
            return not left and not shared

        try:
            took = wait_until(are_gone, "all processes and their entries in /dev/shm are gone", _GONE_S[which])
        except AssertionError as error:
            raise AssertionError(f"{error}: {[command_of(pid) for pid, _ in left]} {shared}") from None
        self.note_seconds(f"{which}: all gone", took)

    def _settings(self) -> dict[str, object]:
        config = self.make_config()
        chosen = self.executor_class
        if isinstance(chosen, type):
            if "<locals>" in chosen.__qualname__:
                pytest.skip("not supported: the class is local to a function, so no other program can import it")
            chosen = f"{chosen.__module__}:{chosen.__qualname__}"
        values = {name: getattr(config, name) for name, source in config.sources().items() if source == "argument"}
        return {**values, "executor_class": chosen}
