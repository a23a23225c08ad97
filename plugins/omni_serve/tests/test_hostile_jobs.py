"""Jobs that nobody means well, what happens to them at once, and the end of a server that is not left alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sockets import head, received, send

from omni_serve.settings import ServeSettings
from serving import FACTORIES, PATIENCE_S, ThreadServer, client_of, process_server, thread_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
IMAGES = "v1/images/generations"
VIDEOS = "v1/videos"
SMALL = {"prompt": "x", "num_inference_steps": 1}
TINY_VIDEO = {"prompt": "x", "width": 16, "height": 16, "max_sequence_length": 16, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def moving() -> Iterator[ThreadServer]:
    with thread_server(model=f"{FACTORIES}:video") as made:
        yield made


@pytest.mark.parametrize("frames", [10**400, 10**9, 10**6 * 2**20], ids=["beyond floats", "a billion", "more"])
def test_a_video_that_no_memory_holds_is_refused_at_once(moving: ThreadServer, frames: int) -> None:
    answer = httpx2.post(f"{moving.url}{VIDEOS}", json={**TINY_VIDEO, "num_frames": frames})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "num_frames")


def test_a_job_that_was_accepted_under_other_limits_fails_alone(tmp_path: Path) -> None:
    """As after a restart with a lower `max_steps`."""
    settings = ServeSettings(port=0, data_dir=tmp_path / "data", drain_timeout_s=0)
    model = f"{FACTORIES}:video"
    with thread_server(settings, model=model, max_num_seqs=1) as before:
        for steps in (300, 200, 2):
            body = {**TINY_VIDEO, "num_inference_steps": steps}
            assert httpx2.post(f"{before.url}{VIDEOS}", json=body).status_code == 200
    with thread_server(settings, model=model, max_steps=250) as after, client_of(after) as client:
        videos = [client.videos.poll(one.id) for one in client.videos.list(order="asc").data]
    assert [one.status for one in videos] == ["failed", "completed", "completed"]
    assert videos[0].error is not None
    assert videos[0].error.code == "invalid_value"
    assert "max_steps" in videos[0].error.message


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_an_idempotency_key_that_is_none(moving: ThreadServer, key: str) -> None:
    answer = httpx2.post(f"{moving.url}{VIDEOS}", json=TINY_VIDEO, headers={"idempotency-key": key})
    assert answer.status_code == 400


def keep(running: ThreadServer, size: int) -> Any:
    content = ("video/mp4", b"v" * size)
    files = dict.fromkeys(("video", "thumbnail", "spritesheet"), content)
    keeping = running.service.jobs.keep("video", "m", {"prompt": "x"}, files)
    return asyncio.run_coroutine_threadsafe(keeping, running.server._loop).result(PATIENCE_S)  # type: ignore[arg-type]


def test_a_download_goes_on_when_the_video_is_deleted(moving: ThreadServer) -> None:
    size = 30 << 20
    job = keep(moving, size)
    request = f"GET /{VIDEOS}/{job.id}/content HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
    with send(moving, request) as connection:
        begin = connection.recv(1 << 16)
        assert b"200 OK" in begin
        for status in (200, 404):
            assert httpx2.delete(f"{moving.url}{VIDEOS}/{job.id}").status_code == status
        rest = received(connection)
    assert len((begin + rest).partition(b"\r\n\r\n")[2]) == size
    ranged = keep(moving, 1000)
    part = httpx2.get(f"{moving.url}{VIDEOS}/{ranged.id}/content", headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, b"v" * 10)


@pytest.mark.parametrize(
    ("asked", "status"),
    [("bytes=10-5", 400), ("lines=1-2", 400), ("bytes", 400), ("bytes=x", 400), ("bytes=1000-", 416)],
)
def test_a_part_that_is_none(moving: ThreadServer, asked: str, status: int) -> None:
    job = keep(moving, 1000)
    answer = httpx2.get(f"{moving.url}{VIDEOS}/{job.id}/content", headers={"range": asked})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, "invalid_range")
    assert answer.headers.get("content-range") == ("bytes */1000" if status == 416 else None)


def test_a_file_that_is_gone_is_not_found(moving: ThreadServer) -> None:
    """As between the look at a job and the opening of its file."""
    job = keep(moving, 10)
    moving.service.jobs._store._files.remove(job.id)
    assert httpx2.get(f"{moving.url}{VIDEOS}/{job.id}/content").status_code == 404


def test_deleting_downloading_and_remixing_at_once(moving: ThreadServer) -> None:
    with httpx2.Client(base_url=moving.url, timeout=PATIENCE_S) as client, ThreadPoolExecutor(6) as clients:
        for _ in range(10):
            path = f"{VIDEOS}/{keep(moving, 1000).id}"
            calls = [("GET", f"{path}/content"), ("DELETE", path), ("DELETE", path), ("POST", f"{path}/remix")] * 2
            asked = [clients.submit(client.request, *call, json={"prompt": "y"}) for call in calls]  # type: ignore[arg-type]
            answers = [one.result(PATIENCE_S) for one in asked]
            assert {answer.status_code for answer in answers} <= {200, 404}


# The end.


def test_the_end_does_not_wait_long_for_bodies_that_do_not_come(tmp_path: Path) -> None:
    body = json.dumps({**SMALL, "num_inference_steps": 5}).encode()
    with process_server(tmp_path, "--drain-timeout-s", "600", "--model", f"{FACTORIES}:picture") as running:
        stuck = [send(running, head(IMAGES, 500) + b"{") for _ in range(3)]
        slow = send(running, head(IMAGES, len(body)) + body[:5])
        assert httpx2.get(f"{running.url}live").status_code == 200
        running.signal(signal.SIGTERM)
        time.sleep(1)
        slow.sendall(body[5:])
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 200"), "one that comes is waited for"
        for connection in stuck:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 503")
            connection.close()
        slow.close()
        assert running.wait(30) == 0


def test_sigterm_while_the_model_is_loaded(tmp_path: Path, wait_until: Any) -> None:
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "omni_core", "serve", "--port", "0", "--model", f"{FACTORIES}:hanging"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_until(lambda: any((tmp_path / "tmp").glob("omni-serve-jobs-*")), PATIENCE_S)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait(PATIENCE_S)
    assert not list((tmp_path / "tmp").glob("omni-serve-*"))
    assert "Traceback" not in (tmp_path / "log").read_text()
