"""What the program's log has of worker processes: one event for a death, none for a time-out, no progress bars."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest

MODEL = "omni_core.testing.pipelines:class_conditional"


def ask(**fields: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(seed=1, **{"num_inference_steps": 500, "extra_args": {"class_labels": [1]}, **fields})


def config(**fields: Any) -> OmniDiffusionConfig:
    return OmniDiffusionConfig(executor_class="multiproc", model=fields.pop("model", MODEL), **fields)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.omni["event"] for record in caplog.records if hasattr(record, "omni")]


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_death_is_one_event(caplog: pytest.LogCaptureFixture, wait_until: Callable[..., None], ranks: int) -> None:
    """However many ranks go with it, and however many requests run again."""
    with caplog.at_level(logging.INFO, "omni_core"), DiffusionEngine(config(cfg_parallel_size=ranks)) as engine:
        [pids] = engine.executor.worker_pids()  # type: ignore[attr-defined]
        handles = engine.submit_all([ask(), ask(), ask()])
        wait_until(lambda: engine.stats().running == 3)
        os.kill(pids[-1], signal.SIGKILL)
        wait_until(lambda: events(caplog).count("worker restarted") == ranks, timeout=60)
        wait_until(lambda: events(caplog).count("request is run again") == 3)
        for handle in handles:
            handle.abort()
    bad = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.omni["event"] for record in bad] == ["worker died"], caplog.text
    [died] = bad
    assert died.levelno == logging.ERROR
    assert (died.omni["replica"], died.omni["rank"]) == (0, ranks - 1)
    assert f"pid {pids[-1]}, was killed by SIGKILL" in died.omni["reason"]
    assert caplog.text.count("SIGKILL") == 1, caplog.text
    assert events(caplog).count("request is run again") == 3, "once for each"


def test_a_time_out_of_the_caller_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "omni_core"), DiffusionEngine(config()) as engine:
        [output] = engine.step([ask(timeout_s=0.05, num_inference_steps=900, request_id="late")])
        still = engine.submit(ask())
    assert (output.finish_reason, still.result(0).finish_reason) == ("timeout", "error")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], caplog.text
    assert "request ended request_id='late' reason=" in caplog.text


def test_bars_are_no_lines_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Those of a loader, of a pipeline, and of one that raises in the middle."""
    with (
        caplog.at_level(logging.INFO, "omni_core"),
        DiffusionEngine(config(model="multiproc_models:draws_bars")) as engine,
    ):
        good, bad = engine.step([OmniDiffusionRequest(prompt="good"), OmniDiffusionRequest(prompt="bad")])
    assert (good.finish_reason, bad.finish_reason) == ("finished", "error")
    assert {"loading begins", "the loader has ended", "good begins", "bad stops here"} <= set(events(caplog))
    assert "%|" not in caplog.text
    assert "it/s" not in caplog.text


DAEMON = """
import sys
from pathlib import Path
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
if __name__ == "__main__":
    assert sys.stderr is None
    options = {"start_method": sys.argv[1]}
    config = OmniDiffusionConfig(executor_class="multiproc", executor_options=options, model=sys.argv[2])
    with DiffusionEngine(config) as engine:
        request = OmniDiffusionRequest(num_inference_steps=2, extra_args={"class_labels": [1]})
        [output] = engine.step([request])
    Path("ended").write_text(output.finish_reason)
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_program_without_standard_streams(method: str, tmp_path: Path) -> None:
    """As a daemon: the next files that are opened have the numbers 0 to 2."""
    file = tmp_path / "daemon.py"
    file.write_text(DAEMON)
    command = [sys.executable, str(file), method, MODEL]
    done = subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *command], timeout=120, check=False)
    assert done.returncode == 0
    assert Path("ended").read_text() == "finished"
