"""Whatever one request raises, and wherever, ends that request alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.errors import PipelineError
from omni_core.worker import model_runner
from small_pipelines.raising import ERRORS, PLACES, build

FIELDS: dict[str, Any] = {"prompt": "a red seven", "height": 32, "width": 32, "num_inference_steps": 3}


def request(seed: int, **extra_args: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(**FIELDS, seed=seed, output_type="np", extra_args=extra_args)


def expected(seed: int) -> Any:
    import torch

    pipeline = build()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**FIELDS, generator=torch.Generator().manual_seed(seed)).images


@pytest.mark.parametrize("stacking", ["verified", "off"])
@pytest.mark.parametrize("place", PLACES)
def test_that_request_alone_ends(place: str, stacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # With the thread for autoencoders, however few cores there are.
    monkeypatch.setattr(model_runner, "has_room_for_side_thread", lambda _device: True)
    right = {seed: expected(seed) for seed in (1, 2)}
    with DiffusionEngine(OmniDiffusionConfig(stacking=stacking), pipeline=build()) as engine:
        engine.step([request(1), request(2)])  # the kind is known to stack from here on
        for error in sorted(ERRORS):
            first, bad, second = engine.step([request(1), request(9, fault=(place, error)), request(2)])
            assert bad.finish_reason == "error", error
            with pytest.raises(PipelineError) as caught:
                bad.raise_for_error()
            assert error in str(caught.value)
            assert "Traceback (most recent call last)" in str(caught.value.worker_traceback)
            assert "raising.py" in str(caught.value.worker_traceback)
            for output, seed in ((first, 1), (second, 2)):
                assert np.abs(np.asarray(output.raise_for_error().images) - right[seed]).max() <= 1e-4


@pytest.mark.parametrize("error", sorted(ERRORS))
def test_what_is_raised_while_a_request_is_aborted(error: str) -> None:
    with DiffusionEngine(pipeline=build()) as engine:
        handle = engine.submit(
            OmniDiffusionRequest(
                **{**FIELDS, "num_inference_steps": 500}, seed=1, extra_args={"fault": ("ending", error)}
            )
        )
        for event in handle.events(timeout=60):
            if event.kind == "step" and event.step >= 2:
                handle.abort()
        assert handle.result(timeout=60).finish_reason == "aborted"
        [output] = engine.step([request(1)])
        assert output.raise_for_error().finish_reason == "finished"


SCRIPT = """
    import signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from omni_core import DiffusionEngine, OmniDiffusionRequest
    from small_pipelines.raising import build

    if __name__ == "__main__":
        engine = DiffusionEngine(pipeline=build())
        handle = engine.submit(OmniDiffusionRequest(prompt="a", height=32, width=32, num_inference_steps=500, seed=1))
        try:
            for event in handle.events(timeout=60):
                if event.kind == "step" and event.step == 2:
                    print("running", flush=True)
        except KeyboardInterrupt:
            print("interrupted", handle.done(), flush=True)
            engine.close()
            print(handle.result(5).error, flush=True)
"""


def test_ctrl_c_is_the_programs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted False\n"
            rest = process.stdout.read()
        finally:
            watchdog.cancel()
    assert "closed" in rest
    assert process.returncode == 0
