"""A model of the hub that is not here, or not all of it; with a hub of our own, as the real one is none of our test."""

from __future__ import annotations

import http.server
import threading

import pytest

from cli.doctor_harness import Machine, make_model

MODEL = "nobody/has-this-model"


@pytest.fixture
def machine(omni, tmp_path, monkeypatch):
    monkeypatch.setenv("OMNI_MODEL", MODEL)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name in ("HF_HUB_CACHE", "http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return Machine(omni, tmp_path, tmp_path / "site", monkeypatch, new_process=True)


@pytest.fixture
def hub():
    """A hub that knows no model, but answers."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_a_model_that_is_not_downloaded(machine, hub):
    machine.export(HF_HUB_OFFLINE=1, HF_ENDPOINT="http://127.0.0.1:9")
    [finding] = machine.findings()
    assert finding["state"] == "problem"
    assert finding["detail"] == f"{MODEL} is not downloaded and HF_HUB_OFFLINE is set"
    machine.follow(finding["cure"].partition(",")[0])

    [finding] = machine.findings()
    assert finding["state"] == "problem"
    assert "http://127.0.0.1:9 cannot be reached: " in finding["detail"]
    assert f"`hf download {MODEL} --local-dir FOLDER`" in finding["cure"]

    machine.export(HF_ENDPOINT=hub)
    [finding] = machine.findings()
    assert finding["state"] == "warning"
    assert f"`hf download {MODEL}`" in finding["cure"]

    make_model(machine.folder / "brought")
    machine.export(OMNI_MODEL=machine.folder / "brought")
    machine.new_process = False
    assert machine.findings() == []


def test_a_cache_that_takes_no_files(machine, hub):
    machine.export(HF_HUB_OFFLINE=0, HF_ENDPOINT=hub)
    (machine.folder / "hub").write_text("a file where a folder should be")
    [finding] = [finding for finding in machine.findings() if finding["check"] == "hub cache"]
    assert finding["state"] == "problem"
    assert f"{machine.folder / 'hub'} takes no files" in finding["detail"]
    assert "`export HF_HOME=FOLDER`" in finding["cure"]
    machine.export(HF_HOME=machine.folder / "other")
    assert [finding["state"] for finding in machine.findings()] == ["warning"]


def test_a_download_that_did_not_end(machine):
    from huggingface_hub import constants

    cache = machine.folder / "hub" / "hub"
    machine.new_process = False
    machine.patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    stored = cache / f"models--{MODEL.replace('/', '--')}"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("4d7a")
    weights = make_model(stored / "snapshots" / "4d7a") / "unet" / "diffusion_pytorch_model.safetensors"
    assert machine.findings() == []
    weights.write_bytes(weights.read_bytes()[:-3])
    [finding] = machine.findings()
    assert "is not whole" in finding["detail"]
    assert f"`hf download {MODEL}`" in finding["cure"]


def test_an_id_that_no_hub_has(machine):
    machine.new_process = False
    machine.export(OMNI_MODEL="a b/c")
    [finding] = machine.findings()
    assert finding["state"] == "problem"
    assert "hub id owner/name" in finding["cure"]
