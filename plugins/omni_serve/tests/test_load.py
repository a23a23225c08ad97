"""Many clients, slow clients, and bodies that are none: what is beyond a bound is refused, and the rest is right."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_serve.settings import ServeSettings
from serving import PATIENCE_S, ThreadServer, client_of, picture_of, thread_server

STEPS = 4
NUM_CLIENTS = 500
# Memory that 450 refused and 50 waiting requests may cost in all, in bytes.
_FLAT = 150 << 20


@pytest.fixture(scope="module")
def small() -> Iterator[ThreadServer]:
    """A server with a narrow door."""
    with thread_server(ServeSettings(port=0, max_body_bytes=1 << 20), max_waiting=50, max_num_seqs=4) as made:
        yield made


def test_five_hundred_clients_at_once(small: ThreadServer) -> None:
    memory = psutil.Process().memory_info().rss

    async def ask(client: httpx2.AsyncClient, seed: int) -> httpx2.Response:
        body = {"prompt": "a red seven", "seed": seed, "num_inference_steps": STEPS}
        return await client.post("v1/images/generations", json=body)

    async def ask_all() -> list[httpx2.Response]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=small.url, timeout=2 * PATIENCE_S, limits=limits) as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(NUM_CLIENTS)))

    answers = asyncio.run(ask_all())
    accepted = {seed: answer for seed, answer in enumerate(answers) if answer.status_code == 200}
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(accepted) >= 50
    assert refused, "all were taken: the bound was not tried"
    for answer in refused:
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "engine_overloaded"
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert int(answer.headers["retry-after-ms"]) >= 1
    sample = sorted(accepted)[:: max(1, len(accepted) // 8)]
    requests = [OmniDiffusionRequest(prompt="a red seven", seed=seed, num_inference_steps=STEPS) for seed in sample]
    with DiffusionEngine(OmniDiffusionConfig(log_level="warning")) as engine:
        outputs = engine.step(requests)
    for seed, output in zip(sample, outputs, strict=True):
        picture = picture_of(accepted[seed].json()["data"][0]["b64_json"])
        assert np.abs(np.asarray(picture, int) - np.asarray(output.images[0], int)).max() <= 2
    assert psutil.Process().memory_info().rss - memory < _FLAT
    stats = small.service.engine.engine.stats(ask_workers=False)
    assert (stats.running, stats.waiting) == (0, 0)
    assert not small.service._running


def test_the_client_tries_again_when_it_is_told_to(small: ThreadServer) -> None:
    """What was refused is done in the end by a client that heeds Retry-After."""

    def ask(done: list[bool]) -> None:
        with client_of(small, max_retries=50, timeout=PATIENCE_S) as client:
            answer = client.images.generate(prompt="a red seven", n=10, extra_body={"num_inference_steps": STEPS})
            done.append(len(answer.data or []) == 10)

    done: list[bool] = []
    clients = [threading.Thread(target=ask, args=(done,)) for _ in range(12)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(PATIENCE_S)
    assert done == [True] * 12


# Bodies.

IMAGES = "v1/images/generations"
BODIES: dict[str, tuple[str, bytes, str, int]] = {
    "no JSON": (IMAGES, b"{", "application/json", 400),
    "nothing": (IMAGES, b"", "application/json", 400),
    "a list": (IMAGES, b"[1]", "application/json", 400),
    "a number": (IMAGES, b"7", "application/json", 400),
    "NaN": (IMAGES, b'{"prompt": "x", "guidance_scale": NaN}', "application/json", 400),
    "no UTF-8": (IMAGES, b'{"prompt": "\xff"}', "application/json", 400),
    "half a surrogate": (IMAGES, b'{"prompt": "\\ud800"}', "application/json", 400),
    "half a surrogate elsewhere": (
        IMAGES,
        b'{"prompt": "x", "prompt_2": "\\ud800"}',
        "application/json",
        400,
    ),
    "nested without end": (IMAGES, b"[" * 100_000, "application/json", 400),
    "a deep table": (IMAGES, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "application/json", 400),
    "a huge number": (IMAGES, b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}", "application/json", 400),
    "a null byte": (IMAGES, b'{"prompt": "a\\u0000b", "no_such": 1}', "application/json", 400),
    "another kind": (IMAGES, b"<x/>", "application/xml", 415),
    "too large": (IMAGES, b'{"prompt": "' + b"a" * (2 << 20) + b'"}', "application/json", 413),
    "a form without a boundary": ("v1/images/edits", b"x", "multipart/form-data", 400),
    "a form that is cut off": (
        "v1/images/edits",
        b'--b\r\nContent-Disposition: form-data; name="p',
        "multipart/form-data; boundary=b",
        400,
    ),
    "a form of nothing": ("v1/images/edits", b"--b--\r\n", "multipart/form-data; boundary=b", 400),
    "a form of noise": ("v1/images/edits", bytes(range(256)) * 20, "multipart/form-data; boundary=b", 400),
    "too many fields": (
        "v1/images/edits",
        b"".join(b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n1\r\n' % n for n in range(200))
        + b"--b--\r\n",
        "multipart/form-data; boundary=b",
        400,
    ),
    "too many files": (
        "v1/images/edits",
        b"".join(b'--b\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\n1\r\n' for _ in range(20))
        + b"--b--\r\n",
        "multipart/form-data; boundary=b",
        400,
    ),
    "a field as a list and a table": (
        "v1/images/edits",
        b'--b\r\nContent-Disposition: form-data; name="a[]"\r\n\r\n1\r\n'
        b'--b\r\nContent-Disposition: form-data; name="a[x]"\r\n\r\n1\r\n--b--\r\n',
        "multipart/form-data; boundary=b",
        400,
    ),
    "an odd name": (
        "v1/images/edits",
        b'--b\r\nContent-Disposition: form-data; name="a]["\r\n\r\n1\r\n--b--\r\n',
        "multipart/form-data; boundary=b",
        400,
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_body_that_is_none(small: ThreadServer, case: str) -> None:
    path, content, kind, status = BODIES[case]
    answer = httpx2.post(f"{small.url}{path}", content=content, headers={"content-type": kind}, timeout=PATIENCE_S)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    with client_of(small) as client:
        assert client.images.generate(prompt="a red seven", extra_body={"num_inference_steps": 1}).data


def test_a_body_of_unknown_length_is_bounded_too(small: ThreadServer) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(200):
            sent += 1 << 16
            yield b"a" * (1 << 16)

    try:
        answer = httpx2.post(f"{small.url}{IMAGES}", content=chunks(), headers={"content-type": "application/json"})
    except httpx2.HTTPError:  # it was closed while it was sent
        pass
    else:
        assert answer.status_code == 413


def test_slow_clients_hold_nobody_up(small: ThreadServer) -> None:
    address = httpx2.URL(small.url)
    slow: list[socket.socket] = []
    try:
        for number in range(40):
            connection = socket.create_connection((address.host, address.port))
            slow.append(connection)
            head = f"POST /{IMAGES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            half = head[: 10 + number] if number % 2 else head + "Content-Length: 500\r\n\r\n{"
            connection.sendall(half.encode())
        begun = time.monotonic()
        with client_of(small) as client:
            assert client.images.generate(prompt="a red seven", extra_body={"num_inference_steps": 1}).data
            assert time.monotonic() - begun < PATIENCE_S / 2
    finally:
        for connection in slow:
            connection.close()


def test_probes_are_answered_while_all_places_are_taken(small: ThreadServer, wait_until: Any) -> None:
    address = httpx2.URL(small.url)
    body = json.dumps({"prompt": "a red seven", "num_inference_steps": 100_000, "n": 10})
    head = f"POST /{IMAGES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall((head + body).encode())
        wait_until(lambda: httpx2.get(f"{small.url}v1/omni/stats").json()["running"] == 4, PATIENCE_S)
        for path in ("live", "ready", "health"):
            assert httpx2.get(f"{small.url}{path}").status_code == 200
    wait_until(lambda: httpx2.get(f"{small.url}v1/omni/stats").json()["running"] == 0, PATIENCE_S)


def test_asleep_and_awake(small: ThreadServer, wait_until: Any) -> None:
    with httpx2.Client(base_url=small.url, timeout=PATIENCE_S) as client:
        assert client.post("v1/omni/sleep", json={"level": 3}).status_code == 400
        assert client.post("v1/omni/sleep").json() == {"sleep_level": 1}
        assert client.get("v1/omni/stats").json()["sleep_level"] == 1
        answers: list[int] = []
        waiting = threading.Thread(
            target=lambda: answers.append(
                httpx2.post(
                    f"{small.url}{IMAGES}", json={"prompt": "a red seven", "num_inference_steps": 1}, timeout=PATIENCE_S
                ).status_code
            )
        )
        waiting.start()
        wait_until(lambda: client.get("v1/omni/stats").json()["waiting"] == 1, PATIENCE_S)
        assert client.post("v1/omni/wake_up").json() == {"sleep_level": 0}
        waiting.join(PATIENCE_S)
        assert answers == [200]


def test_paths_and_methods_that_are_not_there(small: ThreadServer) -> None:
    for method, path, status in (("GET", "v1/nothing", 404), ("GET", IMAGES, 405), ("POST", "live", 405)):
        answer = httpx2.request(method, f"{small.url}{path}")
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.headers["x-request-id"]
