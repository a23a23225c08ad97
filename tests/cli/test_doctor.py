from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import pytest

from cli.doctor_harness import Machine, make_command, make_model
from cli.doctor_mistakes import MISTAKES, matches
from omni_core.cli.checks import bounded, devices, memory
from omni_core.config import OmniDiffusionConfig


@pytest.fixture
def machine(omni, tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    return Machine(omni, tmp_path, site, monkeypatch)


def test_all_is_well(machine):
    machine.flags = ["--model", make_model(machine.folder / "model")]
    report = machine.report()
    checks = {check["check"]: check for check in report["checks"]}
    assert report["problems"] == report["warnings"] == 0, report
    assert all(check["state"] == "ok" and not check["cure"] for check in report["checks"])
    assert "DDPMPipeline in " in checks["model"]["detail"]
    for name in ("python", "omni-core", "torch", "diffusers", "transformers", "PyAV", "accelerate"):
        assert checks[name]["detail"]
    for name in ("config", "cpu", "device", "memory", "open files", "temporary files", "executor"):
        assert checks[name]["detail"]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_and_its_cure_helps(machine, name):
    mistake = MISTAKES[name]
    mistake.make(machine)
    before = machine.findings()
    found = [finding for finding in before if matches(mistake, finding)]
    assert len(found) == 1, before
    if mistake.mend is not None:
        mistake.mend(machine)
    else:
        machine.follow(found[0]["cure"])
    assert machine.findings() == []


# A field, an impossible value for it, and what the finding says: made in each place where a field can be set.
FIELDS = {
    "executor_class": ("inlin", "There is no executor 'inlin'"),
    "device": ("cuda:99", "cuda:99 cannot be used"),
    "num_threads": (9999, "num_threads = 9999"),
    "step_timeout_s": (9.0, "does not support step_timeout_s"),
    "startup_timeout_s": (-1.0, "startup_timeout_s"),
    "max_num_seqs": (0, "max_num_seqs"),
    "model": ("./modell", "there is no folder modell"),
}


@pytest.mark.parametrize("place", ["variable", "flag", "file"])
@pytest.mark.parametrize("name", FIELDS)
def test_a_cure_helps_wherever_the_field_was_set(machine, name, place):
    value, says = FIELDS[name]
    make_model(machine.folder / "model")
    if place == "variable":
        machine.export(**{f"OMNI_{name.upper()}": value})
    elif place == "flag":
        machine.flags += [f"--{name.replace('_', '-')}", str(value)]
    else:
        (machine.folder / "omni.toml").write_text(f"{name} = {json.dumps(value)}\n")
    found = machine.findings()
    assert len(found) == 1, found
    assert says in found[0]["detail"]
    machine.follow(found[0]["cure"])
    assert machine.findings() == []


def test_several_wrong_fields_are_cured_one_by_one(machine):
    (machine.folder / "omni.toml").write_text('xyzzy = 1\nmax_num_seq = 2\ndtype = "float8"\n')
    machine.export(OMNI_MAX_RETRIES="-1")
    [finding] = machine.findings()
    cures = finding["cure"].split(". ")
    assert len(cures) == 4
    for cure in cures:
        machine.follow(cure)
    assert machine.findings() == []


def test_a_problem_is_told_with_its_cure(omni):
    result = omni("doctor", "--model", "./nowhere", "--device", "nonsense")
    assert result.exit_code == 1
    assert "there is no folder nowhere" in result.stdout
    assert "problem: device: `--device auto`" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("2 problems")


def test_a_wrong_configuration_is_a_problem_and_not_the_end(omni):
    result = omni("doctor", "--max-num-seqs", 0)
    assert result.exit_code == 1
    assert "max_num_seqs = 0" in result.stdout
    assert "problem: config: Correct the flag --max-num-seqs" in result.stdout
    assert "torch" in result.stdout


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("omni.toml", b"\xff\xfe\x00"),
        ("omni.toml", b"model = 3\nnonsense = [1"),
        ("model/model_index.json", b"\xff\xfe\x00"),
        ("model/model_index.json", b"[]"),
        ("model/model_index.json", b'{"_class_name": 3, "unet": 4, "vae": [], "": ["a", "b"]}'),
        ("model/unet/diffusion_pytorch_model.safetensors", b""),
        ("model/unet/x.safetensors.index.json", b'{"weight_map": 3}'),
        ("acme_broken.py", b"import sys\nsys.exit(3)\n"),
        ("acme_broken.py", b"\x00"),
    ],
)
def test_nothing_that_is_broken_ends_the_rest(machine, file, content):
    make_model(machine.folder / "model")
    (machine.folder / file).write_bytes(content)
    machine.patch.syspath_prepend(str(machine.folder))
    machine.flags = ["--model", "acme_broken:make" if file.endswith(".py") else "./model"]
    report = machine.report()
    assert {"python", "torch", "cpu"} <= {check["check"] for check in report["checks"]}
    assert all(check["cure"] for check in report["checks"] if check["state"] != "ok")


def test_what_hangs_is_given_up(machine):
    machine.patch.setattr(bounded, "SECONDS_PER_CHECK", 3.0)
    machine.patch.setattr(bounded, "SECONDS_IN_ALL", 30.0)
    released = threading.Event()
    machine.patch.setattr(threading, "acme_released", released, raising=False)
    (machine.folder / "acme_hangs.py").write_text("import threading\nthreading.acme_released.wait(60)\n")
    machine.patch.syspath_prepend(str(machine.folder))
    machine.flags = ["--model", "acme_hangs:make"]
    try:
        found = [finding for finding in machine.findings() if finding["check"] == "model"]
    finally:
        released.set()
    assert len(found) == 1
    assert "did not end within 3 s" in found[0]["detail"]
    assert found[0]["cure"]


def test_checks_have_a_bound_together(machine):
    """However many hang: each has the rest of the time of all, and a little at the least."""
    machine.patch.setattr(bounded, "SECONDS_IN_ALL", 0.0)
    machine.patch.setattr(bounded, "LEAST_SECONDS", 0.05)
    asked = []
    machine.patch.setattr(bounded, "run_bounded", lambda name, check, seconds: asked.append((name, seconds)) or ())
    machine.findings()
    assert len(asked) > 8
    assert {seconds for _, seconds in asked} == {0.05}


def torch_with(**changes):
    cuda = SimpleNamespace(is_available=lambda: False, device_count=lambda: 0)
    backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False))
    return SimpleNamespace(version=SimpleNamespace(cuda="13.0", hip=None), cuda=cuda, backends=backends, **changes)


def gpu_findings(monkeypatch, torch, config=None):
    monkeypatch.setattr(devices, "try_import", lambda name: (torch, None))
    return [finding for finding in devices.check_devices(config) if finding.state != "ok"]


def test_a_driver_older_than_the_cuda_of_torch(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", make_command(tmp_path / "bin", "nvidia-smi", "| CUDA Version: 12.4 |\n"))
    [finding] = gpu_findings(monkeypatch, torch_with())
    assert "torch is built for CUDA 13.0, and the NVIDIA driver knows CUDA up to 12.4" in finding.detail
    assert "a driver for CUDA 13.0, or torch for CUDA 12.4 or older" in finding.cure
    (tmp_path / "bin" / "text").write_text("| CUDA Version: 13.1 |\n")
    [finding] = gpu_findings(monkeypatch, torch_with())
    assert "lists a GPU, and torch finds none" in finding.detail


def test_gpus_that_are_hidden(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    [finding] = gpu_findings(monkeypatch, torch_with())
    assert (finding.check, finding.cure) == ("cuda", "`unset CUDA_VISIBLE_DEVICES`")


def test_a_driver_that_does_not_answer(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", make_command(tmp_path / "bin", "nvidia-smi", ""))
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    [finding] = gpu_findings(monkeypatch, torch_with())
    assert "there is no NVIDIA GPU here" in finding.detail
    assert "`nvidia-smi`" in finding.cure


def test_more_ranks_than_gpus(monkeypatch):
    torch = torch_with(empty=lambda size, device: None)
    torch.cuda.is_available, torch.cuda.device_count = (lambda: True), (lambda: 2)
    torch.cuda.get_device_properties = lambda index: SimpleNamespace(name="a GPU", total_memory=2**30)
    config = OmniDiffusionConfig(device="cuda", data_parallel_size=2, cfg_parallel_size=2)
    [finding] = gpu_findings(monkeypatch, torch, config)
    assert "4 ranks for 2 GPUs" in finding.detail
    assert gpu_findings(monkeypatch, torch, config.replace(data_parallel_size=1)) == []


def test_weights_beyond_the_memory_of_a_gpu(monkeypatch, tmp_path):
    torch = torch_with()
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_properties = lambda index: SimpleNamespace(total_memory=7)
    monkeypatch.setattr(memory, "try_import", lambda name: (torch, None))
    config = OmniDiffusionConfig(device="cuda", model=make_model(tmp_path / "model"))  # 4 numbers of 2 bytes
    [finding] = list(memory._weights(config))
    assert (finding.state, finding.cure) == ("problem", "`export OMNI_OFFLOAD=model`")
    assert list(memory._weights(config.replace(offload="model"))) == []


def test_shared_memory_full_of_files(monkeypatch, tmp_path):
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda folder: (2**31, 0, 2**20))
    [finding] = memory._shared_memory(tmp_path)
    assert "full of files" in finding.detail
    assert f"`ls -lS {tmp_path}`" in finding.cure


def test_json_is_one_object(omni):
    assert set(json.loads(omni("doctor", "--json").stdout)) == {"problems", "warnings", "checks"}
