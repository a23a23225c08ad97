"""Sound at once by the real OpenAI client, and as jobs that outlive the server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serving import FACTORIES, PATIENCE_S, ThreadServer, client_of, process_server, thread_server

MODEL = f"{FACTORIES}:audio"
BODY = {"prompt": "rain", "seed": 1, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def running() -> Iterator[ThreadServer]:
    with thread_server(model=MODEL, max_steps=1000, max_prompt_length=100_000) as made:
        yield made


@pytest.fixture
def client(running: ThreadServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=f"{running.url}v1/audio/", timeout=PATIENCE_S) as made:
        yield made


def ended(client: httpx2.Client, job_id: str, wait_until: Any) -> dict[str, Any]:
    def job() -> Any:
        return client.get(f"generations/{job_id}").json()

    wait_until(lambda: job()["status"] in ("completed", "failed"), PATIENCE_S)
    return dict(job())


def test_at_once_and_as_a_job_it_is_the_same(running: ThreadServer, client: httpx2.Client, wait_until: Any) -> None:
    with client_of(running) as openai_client:
        answer = openai_client.audio.speech.create(
            model=MODEL, voice="alloy", input="rain", extra_body={"seed": 1, "num_inference_steps": 4}
        )
        at_once = answer.read()
    assert at_once[:4] == b"RIFF"
    job = client.post("generations", json=BODY).json()
    assert (job["object"], job["prompt"], job["seed"]) == ("audio", "rain", 1)
    assert ended(client, job["id"], wait_until)["status"] == "completed"
    content = client.get(f"generations/{job['id']}/content")
    assert content.headers["content-type"] == "audio/wav"
    assert content.content == at_once


def test_the_other_endpoints_of_jobs(client: httpx2.Client, wait_until: Any) -> None:
    first = client.post("generations", json=BODY, headers={"Idempotency-Key": "one"}).json()
    assert client.post("generations", json=BODY, headers={"Idempotency-Key": "one"}).json()["id"] == first["id"]
    second = client.post(f"generations/{first['id']}/remix", json={"prompt": "wind"}).json()
    assert (second["remixed_from_audio_id"], second["prompt"]) == (first["id"], "wind")
    assert ended(client, second["id"], wait_until)["status"] == "completed"
    listed = [job["id"] for job in client.get("generations", params={"limit": 2}).json()["data"]]
    assert listed == [second["id"], first["id"]]
    assert client.get(f"generations/{first['id']}/content", params={"variant": "video"}).status_code == 400
    assert client.delete(f"generations/{first['id']}").json()["object"] == "audio.deleted"
    assert client.get(f"generations/{first['id']}").status_code == 404


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("v1/videos", {}, "makes sound"),
        ("v1/audio/generations", {"num_frames": 5}, "num_frames"),
        ("v1/audio/generations", {"seconds": 1e9}, "seconds"),
        ("v1/audio/generations", {"seconds": 0.1, "audio_start_in_s": 10**400}, "audio_start_in_s"),
        ("v1/audio/generations", {"num_waveforms_per_prompt": 2}, "several times"),
        ("v1/audio/generations", {"num_inference_steps": 1001}, "max_steps"),
        ("v1/audio/generations", {"prompt": "x" * 300_000}, "max_prompt_length"),
    ],
)
def test_what_is_wrong_is_told_at_once(running: ThreadServer, path: str, fields: dict[str, Any], words: str) -> None:
    answer = httpx2.post(running.url + path, json={**BODY, **fields})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_its_length_in_seconds(client: httpx2.Client, wait_until: Any) -> None:
    sizes = []
    for seconds in (0.1, 0.2):  # of the small model, at most
        job = client.post("generations", json={**BODY, "seconds": seconds}).json()
        assert job["seconds"] == f"{seconds:g}"
        assert ended(client, job["id"], wait_until)["status"] == "completed"
        sizes.append(len(client.get(f"generations/{job['id']}/content").content))
    assert sizes[0] < sizes[1]


def test_a_model_that_makes_none(editing: ThreadServer) -> None:
    for path in ("speech", "generations"):
        answer = httpx2.post(f"{editing.url}v1/audio/{path}", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_kind")


def test_jobs_outlive_the_server(tmp_path: Path, wait_until: Any) -> None:
    arguments = ("--model", MODEL, "--data-dir", str(tmp_path / "data"))
    with process_server(tmp_path, *arguments) as first:
        job = httpx2.post(f"{first.url}v1/audio/generations", json={**BODY, "num_inference_steps": 500}).json()
        first.signal(signal.SIGKILL)
        first.wait()
    with process_server(tmp_path, *arguments) as second:
        with httpx2.Client(base_url=f"{second.url}v1/audio/") as client:
            assert ended(client, job["id"], wait_until)["status"] == "completed"
            assert client.get(f"generations/{job['id']}/content").content[:4] == b"RIFF"
