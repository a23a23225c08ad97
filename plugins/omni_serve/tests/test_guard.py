"""Who is let in: keys, browsers' origins and names, and addresses that all of a network can reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from click.testing import CliRunner

from omni_core.cli.app import make_app
from omni_serve.settings import ServeSettings
from serving import FACTORIES, ServeProcess, ThreadServer, client_of, thread_server

KEYS = ("a-key-of-the-first-client", "a-key-of-the-second-client")
MODEL = f"{FACTORIES}:class_conditional"


@pytest.fixture(scope="module")
def keyed() -> Iterator[ThreadServer]:
    with thread_server(ServeSettings(port=0, api_keys=KEYS), model=MODEL) as made:
        yield made


@pytest.fixture(scope="module")
def keyless() -> Iterator[ThreadServer]:
    with thread_server(model=MODEL) as made:
        yield made


@pytest.mark.parametrize("key", KEYS)
def test_a_client_with_a_key(keyed: ThreadServer, key: str) -> None:
    with client_of(keyed, api_key=key) as client:
        assert client.models.list().data


@pytest.mark.parametrize("key", ["EMPTY", KEYS[0][:-1], f"{KEYS[0]}x", "ключ".encode().decode("latin-1")])
def test_a_client_without(keyed: ThreadServer, key: str) -> None:
    headers = {"authorization": f"Bearer {key}".encode("latin-1")}
    answer = httpx2.get(f"{keyed.url}v1/models", headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    with client_of(keyed) as client, pytest.raises(openai.AuthenticationError):
        client.images.generate(prompt="x")


def test_what_needs_no_key(keyed: ThreadServer) -> None:
    for path in ("", "live", "ready", "health", "favicon.ico"):
        assert httpx2.get(f"{keyed.url}{path}").status_code == 200, path
    for path in ("v1/models", "v1/omni/stats", "openapi.json", "metrics", "v1/videos", "page/../v1/models"):
        assert httpx2.get(f"{keyed.url}{path}").status_code == 401, path


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:{port}"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "localhost.evil.example:{port}"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://127.0.0.1:{port}"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:{port}", "origin": "http://localhost:{port}"}, 200),
        ({"host": "localhost:{port}", "origin": "http://127.0.0.1:{port}"}, 403),
    ],
)
def test_pages_of_others_are_kept_out(keyless: ThreadServer, headers: dict[str, str], status: int) -> None:
    port = str(httpx2.URL(keyless.url).port)
    filled = {name: value.replace("{port}", port) for name, value in headers.items()}
    assert httpx2.get(f"{keyless.url}v1/models", headers=filled).status_code == status


def test_another_name_that_is_allowed() -> None:
    settings = ServeSettings(port=0, allowed_hosts=frozenset({"pictures.example"}))
    with thread_server(settings, model=MODEL) as running:
        for name, status in (("pictures.example", 200), ("pictures.example:80", 200), ("other.example", 421)):
            assert httpx2.get(f"{running.url}v1/models", headers={"host": name}).status_code == status


# The command line.


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(make_app(), ["serve", *arguments])
    return done.exit_code, done.output + str(done.exception or "")


def test_an_open_address_needs_a_key_or_a_word() -> None:
    code, said = invoke("--host", "0.0.0.0", "--port", "0")
    assert code != 0
    assert "--no-auth" in said
    assert "OMNI_SERVE_API_KEY" in said


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ("short", 0o600, "at least 16"),
        ("a key with spaces in it", 0o600, "no space"),
        ("", 0o600, "no key in it"),
        ("# nothing\n\n", 0o600, "no key in it"),
        (KEYS[0], 0o644, "chmod 600"),
        (None, 0o600, "cannot be read"),
    ],
)
def test_a_key_file_that_will_not_do(tmp_path: Path, content: str | None, mode: int, words: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    code, said = invoke("--api-key-file", str(file))
    assert code != 0
    assert words in said


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(keyless: ThreadServer) -> None:
    port = str(httpx2.URL(keyless.url).port)
    code, said = invoke("--port", port, "--model", "/nowhere")
    assert code != 0
    assert f"Cannot listen on 127.0.0.1:{port}" in said


def test_keys_of_a_file_and_flags_of_the_configuration(serve_process: ServeProcess, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the clients\n{KEYS[0]}\n\n{KEYS[1]}\n")
    file.chmod(0o600)
    with serve_process(
        tmp_path, "--api-key-file", str(file), "--model", MODEL, "--max-num-seqs", "3", "--served-model-name", "letters"
    ) as running:
        with client_of(running, api_key=KEYS[1]) as client:
            assert [model.id for model in client.models.list().data] == ["letters"]
        assert httpx2.get(f"{running.url}v1/models").status_code == 401


@pytest.mark.parametrize("value", ["nan", "inf", "1e19", "-1"])
@pytest.mark.parametrize("option", ["--job-expiry-s", "--drain-timeout-s"])
def test_seconds_that_are_none(option: str, value: str) -> None:
    result = CliRunner().invoke(make_app(), ["serve", option, value])
    assert (result.exit_code, f"'{option}'" in result.output) == (2, True)
