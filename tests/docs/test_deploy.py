"""What the files in deploy/ promise and can lose: flags, paths of probes, time-outs that must be larger than others."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.pages import ROOT
from omni_core.cli.app import make_app
from omni_serve.app import ROUTES
from omni_serve.errors import OVERLOADED, ApiError
from omni_serve.jobs.runner import _CANCEL_S
from omni_serve.keys import read_keys
from omni_serve.server import _CLOSE_S, _LAST_WORDS_S

DEPLOY = ROOT / "deploy"
IMAGES = ("Dockerfile", "Dockerfile.cuda")
# `inline` waits so long for the denoiser call that runs, other executors less.
_ENGINE_S = 30
# Between the end of the drain and that of the process, at most.
_AFTER_DRAIN_S = _CANCEL_S + _LAST_WORDS_S + _CLOSE_S + _ENGINE_S


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def unit() -> dict[str, list[str]]:
    """Return the settings of the unit, each with all of its values."""
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n\s*", "", text_of("omni-serve.service")).splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def manifests() -> dict[str, dict[str, Any]]:
    """Return the objects of Kubernetes by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all(text_of("kubernetes.yaml"))}


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = manifests()["Deployment"]["spec"]["template"]["spec"]
    return spec


def instruction(image: str, name: str) -> str:
    """Return what follows an instruction of a Dockerfile, its last one of that name."""
    joined = re.sub(r"\\\n\s*", "", text_of(image))
    return [line.removeprefix(f"{name} ") for line in joined.splitlines() if line.startswith(f"{name} ")][-1]


def commands() -> dict[str, list[str]]:
    """Return the command line of each file."""
    found = {"omni-serve.service": shlex.split(unit()["ExecStart"][0])}
    found["kubernetes.yaml"] = pod()["containers"][0]["args"]
    return found | {image: json.loads(instruction(image, "CMD")) for image in IMAGES}


def parameters(name: str) -> dict[str, Any]:
    """Return what the command line of a file sets, as `omni serve` reads it."""
    program, serve, *rest = commands()[name]
    assert (Path(program).name, serve) == ("omni", "serve")
    app = make_app()
    with app.make_context("omni", ["serve"]) as context:
        command = app.get_command(context, "serve")
        assert command is not None
        parsed = command.make_context("serve", rest)  # which refuses flags that it does not have
        return dict(parsed.params)


@pytest.mark.parametrize("name", ["omni-serve.service", "kubernetes.yaml", *IMAGES])
def test_flags_are_those_of_the_command(name: str) -> None:
    values = parameters(name)
    assert values["data_dir"]
    assert values["drain_timeout_s"] == 60
    assert values["port"] == 8000


def probes() -> dict[str, str]:
    container = pod()["containers"][0]
    found = {kind: container[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    for image in IMAGES:
        health = instruction(image, "HEALTHCHECK")
        found[image] = re.findall(r"'GET', '([^']+)'", health)[0]
    return found


def test_probes_ask_for_what_is_there_and_needs_no_key() -> None:
    gets = {path for method, path, _ in ROUTES if method == "GET"}
    found = probes()
    assert set(found.values()) <= gets
    assert found["livenessProbe"] == found["Dockerfile"] == found["Dockerfile.cuda"] == "/live"
    assert found["readinessProbe"] == found["startupProbe"] == "/ready"


def test_probes_reach_the_port() -> None:
    container = pod()["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["http"] == parameters("kubernetes.yaml")["port"]
    assert manifests()["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    for image in IMAGES:
        assert int(instruction(image, "EXPOSE")) == parameters(image)["port"]
        assert f"'127.0.0.1', {parameters(image)['port']}" in instruction(image, "HEALTHCHECK")


def test_who_sends_sigkill_waits_longer_than_the_server_takes() -> None:
    seconds = unit()["TimeoutStopSec"][0]
    assert int(seconds) > parameters("omni-serve.service")["drain_timeout_s"] + _AFTER_DRAIN_S
    pause = int(pod()["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = pod()["terminationGracePeriodSeconds"]
    assert grace > pause + parameters("kubernetes.yaml")["drain_timeout_s"] + _AFTER_DRAIN_S
    [stop] = re.findall(r"--stop-timeout (\d+)", text_of("README.md"))
    assert int(stop) > parameters("Dockerfile")["drain_timeout_s"] + _AFTER_DRAIN_S


def test_sigterm_goes_to_the_server_alone() -> None:
    assert unit()["KillMode"] == ["mixed"]
    assert unit()["KillSignal"] == ["SIGTERM"]
    for image in IMAGES:
        assert json.loads(instruction(image, "ENTRYPOINT")) == ["tini", "--"]
    assert "command" not in pod()["containers"][0], "it would take the place of the init"


def test_it_is_no_root() -> None:
    assert unit()["DynamicUser"] == ["yes"]
    user = pod()["securityContext"]
    for image in IMAGES:
        assert instruction(image, "USER") == f"{user['runAsUser']}:{user['runAsGroup']}"
        assert f"--uid {user['runAsUser']}" in text_of(image)


def test_folders_are_mounted_where_the_server_writes() -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in pod()["containers"][0]["volumeMounts"]}
    volumes = {volume["name"] for volume in pod()["volumes"]}
    assert set(mounts.values()) == volumes
    values = parameters("kubernetes.yaml")
    assert mounts[values["data_dir"]] == "data"
    assert mounts[str(Path(values["api_key_file"]).parent)] == "keys"
    for image in IMAGES:
        assert values["data_dir"] in json.loads(instruction(image, "VOLUME"))
    claim = manifests()["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"]
    assert int(claim.removesuffix("Gi")) * 1024 > values["max_job_mb"]


def test_images_differ_in_torch_and_the_gpu_alone() -> None:
    def rest(image: str) -> list[str]:
        lines = text_of(image).splitlines()
        return [
            line for line in lines if not re.match(r"#|ARG TORCH_INDEX|ENV NVIDIA|CMD", line) and line.strip() != ""
        ]

    assert rest("Dockerfile") == rest("Dockerfile.cuda")
    assert commands()["Dockerfile.cuda"][: len(commands()["Dockerfile"])] == commands()["Dockerfile"]


def test_what_images_copy_is_there() -> None:
    for image in IMAGES:
        for line in re.findall(r"^COPY (.+) \S+$", text_of(image), re.MULTILINE):
            assert [name for name in line.split() if not (ROOT / name).exists()] == []
        for folder in re.findall(r"\./plugins/\w+", text_of(image)):
            assert (ROOT / folder / "pyproject.toml").is_file()


def test_the_proxy_of_the_page_is_the_one_of_the_file() -> None:
    page = (ROOT / "docs" / "SERVING.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"```text\n(client_max_body_size.*?)```", page, re.DOTALL)
    lines = {line.strip() for line in text_of("nginx.conf").splitlines()}
    assert [line for line in shown.splitlines() if line.strip() not in lines] == []
    app = make_app()
    with app.make_context("omni", ["serve"]) as context:
        default = {one.name: one.default for one in app.get_command(context, "serve").params}["max_body_mb"]  # type: ignore[union-attr]
    assert f"client_max_body_size {default}m;" in shown


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a file that belongs to root, for another user")
def test_keys_with_the_mode_that_systemd_and_kubernetes_give_them(tmp_path: Path) -> None:
    """systemd since 254 and Kubernetes with fsGroup: root's, 0440, for a server that is another user."""
    file = tmp_path / "keys"
    file.write_text("a-key-of-the-first-client\n")
    file.chmod(0o440)
    tmp_path.chmod(0o755)
    assert read_keys(str(file), {}) == ("a-key-of-the-first-client",)


def test_errors_of_the_page_are_those_of_the_server() -> None:
    """Every code that the server answers with is in the table of SERVING.md, and each there is one of the server's."""
    sources = "".join(
        file.read_text(encoding="utf-8") for file in (ROOT / "plugins/omni_serve/src/omni_serve").rglob("*.py")
    )
    codes = set(re.findall(r'code="(\w+)"', sources)) | set(re.findall(r'\(\d{3}, "(\w+)"', sources)) | {OVERLOADED}
    codes -= {"not_installed", "unknown"}  # of /metrics, and of executors that do not say what they take
    page = (ROOT / "docs" / "SERVING.md").read_text(encoding="utf-8")
    table = page[page.index("| status | `code`") : page.index("A stream whose request fails")]
    shown = set(re.findall(r"`(\w+)`", "".join(line.split("|")[2] for line in table.splitlines() if "|" in line)))
    assert shown - {"code"} == codes
    assert ApiError(400, "x", code="y").body["error"].keys() == {"message", "type", "param", "code"}
