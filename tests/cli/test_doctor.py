from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from omni_core import ExecutorSpec, hookimpl
from omni_core.cli.checks import machine
from omni_core.cli.checks.model import check_model
from omni_core.cli.checks.setup import check_plugins
from omni_core.config import OmniDiffusionConfig
from omni_core.plugins import PluginRegistry


def make_model(folder, class_name="DDPMPipeline"):
    (folder / "unet").mkdir(parents=True)
    index = {"_class_name": class_name, "unet": ["diffusers", "UNet2DModel"], "safety_checker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    save_file({"x": np.zeros(4, np.float32)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


def findings_of(model, **settings):
    return list(check_model(OmniDiffusionConfig(model=str(model), **settings)))


def test_all_is_well(omni, tmp_path):
    make_model(tmp_path / "model")
    result = omni("doctor", "--json", "--model", "./model")
    report = json.loads(result.stdout)
    checks = {check["check"]: check for check in report["checks"]}
    assert report["problems"] == 0, result.stdout
    assert result.exit_code == 0
    assert "DDPMPipeline in model" in checks["model"]["detail"]
    for name in (
        "python",
        "omni-core",
        "torch",
        "diffusers",
        "transformers",
        "PyAV",
        "accelerate",
        "config",
        "cpu",
        "device",
    ):
        assert checks[name]["detail"]


def test_a_problem_is_told_with_its_cure(omni):
    result = omni("doctor", "--model", "./nowhere", "--device", "nonsense")
    assert result.exit_code == 1
    assert "there is no folder nowhere" in result.stdout
    assert "problem: device: Set device to auto" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("2 problems")


def test_a_wrong_configuration_is_a_problem_and_not_the_end(omni):
    result = omni("doctor", "--max-num-seqs", 0)
    assert result.exit_code == 1
    assert "max_num_seqs = 0" in result.stdout
    assert "torch" in result.stdout


def test_a_good_model(tmp_path):
    [finding] = findings_of(make_model(tmp_path / "model"))
    assert finding.state == "ok"


def break_nothing_there(folder):
    (folder / "model_index.json").unlink()


def break_index(folder):
    (folder / "model_index.json").write_text("{")


def break_component(folder):
    next((folder / "unet").iterdir()).unlink()
    (folder / "unet").rmdir()


def break_weights(folder):
    next((folder / "unet").iterdir()).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")


def break_format(folder):
    next((folder / "unet").iterdir()).rename(folder / "unet" / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_nothing_there, "not in diffusers layout"),
        (break_index, "cannot be read"),
        (break_component, "the folder unet is missing"),
        (break_weights, "Git LFS pointer"),
        (break_format, "no .safetensors"),
    ],
)
def test_a_broken_model(tmp_path, damage, says):
    folder = make_model(tmp_path / "model")
    damage(folder)
    [finding] = findings_of(folder)
    assert finding.state == "problem"
    assert says in finding.detail
    assert finding.cure


def test_a_class_that_diffusers_does_not_have(tmp_path):
    [finding] = findings_of(make_model(tmp_path / "model", "TomorrowPipeline"))
    assert "has no class TomorrowPipeline" in finding.detail


def test_code_that_comes_with_a_model(tmp_path):
    folder = make_model(tmp_path / "model", ["pipeline", "OwnPipeline"])
    assert "trust_remote_code" in findings_of(folder)[0].detail
    assert findings_of(folder, trust_remote_code=True)[0].state == "ok"


def test_other_kinds_of_model(monkeypatch):
    assert findings_of("cli_test_models:ddpm")[0].state == "ok"
    assert "cannot be imported" in findings_of("cli_test_models:nothing")[0].detail
    monkeypatch.setenv("HF_HOME", "empty")
    assert "not downloaded" in findings_of("nobody/has-this-model")[0].detail


def test_more_threads_than_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "9999")
    [finding] = machine._threads(None, None)
    assert finding.state == "warning"
    assert "OMP_NUM_THREADS=9999" in finding.detail
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    [finding] = machine._threads(None, OmniDiffusionConfig(num_threads=1, data_parallel_size=9999))
    assert "9999 replicas" in finding.detail


def test_little_shared_memory(monkeypatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: (2**26, 0, 2**26))
    [finding] = machine._shared_memory(Path("/"))
    assert (finding.state, "--shm-size" in finding.cure) == ("warning", True)


class Offers:
    @hookimpl
    def omni_register_executors(self):
        return [ExecutorSpec("same", "a.b:C")]


def test_plugins_that_are_broken_or_of_one_name():
    point = EntryPoint("sad", "no_such_module_at_all", "omni_core")
    plugins = PluginRegistry(entry_points=[point], disabled=[])
    plugins.register(Offers(), "one")
    plugins.register(Offers(), "two")
    findings = [finding for finding in check_plugins(plugins) if finding.state != "ok"]
    assert [finding.state for finding in findings] == ["warning", "warning"]
    assert "No module named 'no_such_module_at_all'" in findings[0].detail
    assert "OMNI_PLUGINS_DISABLE=sad" in findings[0].cure
    assert "registered by one and by two" in findings[1].detail
    assert "executor_class = one:same or two:same" in findings[1].cure
