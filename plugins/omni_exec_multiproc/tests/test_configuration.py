from __future__ import annotations

from pathlib import Path

import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest


def test_a_broken_file_beside_the_one_that_was_read_disturbs_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("good.toml").write_text('executor_class = "multiproc"\ndevice = "cpu"\nmax_num_seqs = 3\n')
    config = OmniDiffusionConfig.from_file("good.toml")
    Path("omni.toml").write_text("this is = = no TOML")
    monkeypatch.setenv("OMNI_MAX_NUM_SEQS", "many")
    with DiffusionEngine(config) as engine:
        [output] = engine.step([OmniDiffusionRequest(prompt="a red seven", num_inference_steps=1)], timeout=120)
        assert output.finish_reason == "finished"
