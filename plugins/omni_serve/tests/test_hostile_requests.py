"""Requests that nobody means well: each is refused or answered, costs little, and disturbs no other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import psutil
import pytest
from gated_model import gate
from sockets import head, received, send

from omni_serve.http import body_limit
from omni_serve.settings import ServeSettings
from serving import FACTORIES, PATIENCE_S, ThreadServer, client_of, thread_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
IMAGES = "v1/images/generations"
VIDEOS = "v1/videos"
SMALL = {"prompt": "x", "num_inference_steps": 1}


@pytest.fixture(scope="module")
def running() -> Iterator[ThreadServer]:
    with thread_server(ServeSettings(port=0, max_body_bytes=32 << 20), model=f"{FACTORIES}:picture") as made:
        yield made


def status_of(running: ThreadServer, *lines: str) -> int:
    answer = received(send(running, ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode("latin-1")))
    return int(answer.split()[1])


# Bodies.

MANY = 300_000
REFUSED: dict[str, tuple[bytes, str, int]] = {
    "half a surrogate as bytes": (b'{"prompt": "x", "quality": "\xed\xa0\x80"}', "application/json", 400),
    "UTF-16": (json.dumps(SMALL).encode("utf-16"), "application/json", 400),
    "another charset": (json.dumps(SMALL).encode(), "application/json; charset=latin-1", 415),
    "a charset that fails": (b"--b--\r\n", "multipart/form-data; boundary=b; charset=undefined", 415),
    "a key twice": (b'{"prompt": "x", "prompt": "y"}', "application/json", 400),
    "a key twice further in": (b'{"prompt": "x", "joint_attention_kwargs": {"a": 1, "a": 1}}', "application/json", 400),
    "a number beyond all floats": (b'{"prompt": "x", "mu": 1e400}', "application/json", 400),
    "an int beyond all floats": (
        b'{"prompt": "x", "num_inference_steps": 1' + b"0" * 400 + b"}",
        "application/json",
        400,
    ),
    "many fields": (json.dumps({f"k{n}": 1 for n in range(MANY)}).encode(), "application/json", 400),
    "more fields than any pipeline has": (
        json.dumps({f"k{n}": 1 for n in range(300)}).encode(),
        "application/json",
        400,
    ),
    "a long name": (json.dumps({"k" * (5 << 20): 1}).encode(), "application/json", 400),
    "a long list": (json.dumps({"prompt": "x", "sigmas": [1] * (5 << 20)}).encode(), "application/json", 400),
    "a long model": (json.dumps({"prompt": "x", "model": "m" * (20 << 20)}).encode(), "application/json", 400),
    "a long user": (json.dumps({**SMALL, "user": "u" * 5000}).encode(), "application/json", 400),
    "a form of separators": (b"&" * (10 << 20), "application/x-www-form-urlencoded", 413),
    "a text for a number": (json.dumps({**SMALL, "max_sequence_length": "long"}).encode(), "application/json", 400),
    "a table for a number": (json.dumps({**SMALL, "max_sequence_length": {}}).encode(), "application/json", 400),
    "tokens without end": (json.dumps({**SMALL, "max_sequence_length": 10**9}).encode(), "application/json", 400),
    "no words": (b"{}", "application/json", 400),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_body_is_refused_at_little_cost(running: ThreadServer, case: str) -> None:
    content, kind, status = REFUSED[case]
    waited = [0.0]
    is_over = threading.Event()

    def probe() -> None:
        with httpx2.Client(base_url=running.url, timeout=PATIENCE_S) as client:
            while not is_over.is_set():
                begun = time.monotonic()
                client.get("live")
                waited.append(time.monotonic() - begun)

    probing = threading.Thread(target=probe)
    probing.start()
    try:
        answer = httpx2.post(
            f"{running.url}{IMAGES}", content=content, headers={"content-type": kind}, timeout=PATIENCE_S
        )
    finally:
        is_over.set()
        probing.join(PATIENCE_S)
    assert answer.status_code == status, answer.text
    assert 0 < len(answer.json()["error"]["message"]) < 2500
    assert max(waited) < 3, "others waited for it"


def test_what_is_wrong_with_a_user_is_told_of_the_user(running: ThreadServer) -> None:
    answer = httpx2.post(f"{running.url}{IMAGES}", json={**SMALL, "user": "u" * 5000})
    assert answer.json()["error"]["param"] == "user"


@pytest.mark.parametrize("text", ['{"a": 1e999}', '{"a": 1, "a": 2}', '["\\ud800"]'])
def test_a_form_holds_no_json_that_a_body_could_not_hold(running: ThreadServer, text: str) -> None:
    form = {"prompt": "x", "joint_attention_kwargs": text}
    answer = httpx2.post(f"{running.url}{IMAGES}", data=form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "joint_attention_kwargs")


def test_a_compressed_body_is_refused_in_plain_words(running: ThreadServer) -> None:
    answer = httpx2.post(f"{running.url}{IMAGES}", json=SMALL, headers={"content-encoding": "gzip"})
    assert answer.status_code == 415
    assert "compressed (gzip)" in answer.json()["error"]["message"]


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_a_long_prompt_has_room_in_every_format(running: ThreadServer, file_format: str) -> None:
    body = {**SMALL, "prompt": "ж" * 15_000, "output_format": file_format}
    assert httpx2.post(f"{running.url}{IMAGES}", json=body, timeout=PATIENCE_S).status_code == 200


# Headers and connections.


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("GET /live HTTP/1.1", "Host: LOCALHOST"), 200),
        (("GET /live HTTP/1.1", "Host: localhost.:80"), 200),
        (("GET /live HTTP/1.1", "Host: [::1]"), 200),
        (("GET /live HTTP/1.1", "Host: ["), 421),
        (("GET /live HTTP/1.1", "Host: localhost", "Origin: http://LOCALHOST"), 200),
        (("GET /live HTTP/1.1", "Host: localhost", "Origin: http://["), 403),
        (("GET /live HTTP/1.1", "Host: localhost", "Origin: http://[x]"), 403),
        (("GET /live HTTP/1.1", "Host: localhost", "Origin: ftp://localhost"), 403),
        (("GET http://evil.example/live HTTP/1.1", "Host: localhost"), 200),
        (("GET /live HTTP/1.0", "Host: localhost"), 200),
        (("OPTIONS * HTTP/1.1", "Host: localhost"), 404),
        (("HEAD /v1/models HTTP/1.1", "Host: localhost"), 200),
        (("GET /live HTTP/1.1", "Host: localhost", f"X-Request-Id: {'a' * 65536}"), 200),
        (("GET /live HTTP/1.1", "Host: localhost", "X-Request-Id: \xe9"), 200),
        (("GET /live HTTP/1.1", "Host: localhost", "X-Request-Id: a\nb: c"), 400),
        ((f"GET /v1/videos?limit={'9' * 5000} HTTP/1.1", "Host: localhost"), 400),
        (("GET /v1/videos?after=%ed%a0%80%00 HTTP/1.1", "Host: localhost"), 404),
        (("GET /page/%2e%2e/settings.py HTTP/1.1", "Host: localhost"), 404),
        (("GET /page//etc/passwd HTTP/1.1", "Host: localhost"), 404),
        (("GET /v1/files/..%2f..%2fetc%2fpasswd/content HTTP/1.1", "Host: localhost"), 404),
        (("GET /v1/videos/../content HTTP/1.1", "Host: localhost"), 404),
        (("GET /live HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket"), 200),
    ],
)
def test_odd_heads(running: ThreadServer, lines: tuple[str, ...], status: int) -> None:
    assert status_of(running, *lines) == status


def test_names_of_the_server_have_no_case() -> None:
    settings = ServeSettings(port=0, allowed_hosts=frozenset({"Pictures.Example:8000"}))
    with thread_server(settings, model=f"{FACTORIES}:class_conditional") as named:
        assert status_of(named, "GET /live HTTP/1.1", "Host: pictures.example") == 200


def test_a_method_that_a_path_does_not_have(running: ThreadServer) -> None:
    answer = httpx2.put(f"{running.url}{VIDEOS}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


def test_an_answer_before_the_end_of_a_body_leaves_the_connection_usable() -> None:
    settings = ServeSettings(port=0, api_keys=("a-key-of-the-first-client",))
    with thread_server(settings, model=f"{FACTORIES}:class_conditional") as keyed:
        body = b"a" * (3 << 20)
        both = received(send(keyed, head(IMAGES, len(body)) + body + b"GET /live HTTP/1.0\r\nHost: localhost\r\n\r\n"))
        assert both.startswith(b"HTTP/1.1 401")
        assert b"HTTP/1.1 200 OK" in both


def test_requests_in_a_row_without_waiting(running: ThreadServer) -> None:
    body = json.dumps(SMALL).encode()
    last = head(IMAGES, len(body), "Connection: close") + body
    assert received(send(running, (head(IMAGES, len(body)) + body) * 3 + last)).count(b"HTTP/1.1 200 OK") == 4


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure(
    running: ThreadServer, wait_until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    send(running, head(IMAGES, 500) + b"{").close()
    send(running, head("v1/images/edits", 500).replace(b"application/json", b"multipart/form-data; boundary=b")).close()
    wait_until(lambda: not running.server.server_state.connections and not running.service._in_flight, PATIENCE_S)
    assert "not foreseen" not in caplog.text


def test_a_body_that_does_not_come_on_is_given_up(running: ThreadServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "STALL_S", 0.2)
    monkeypatch.setattr(body_limit, "_LOOK_S", 0.05)
    with send(running, head(IMAGES, 500) + b"{") as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408")


def test_large_bodies_are_bounded_together(wait_until: Any) -> None:
    with thread_server(ServeSettings(port=0, max_body_bytes=1 << 20), model=f"{FACTORIES}:class_conditional") as small:
        body = b'{"prompt": "' + b"a" * (900 << 10)
        halves = [send(small, head(IMAGES, 1 << 20) + body) for _ in range(12)]
        try:
            # Any of them: the server reads them in an order of its own.
            answered, _, _ = select.select(halves, [], [], PATIENCE_S)
            assert answered
            refused = answered[0].recv(1 << 16)
            assert refused.startswith(b"HTTP/1.1 429")
            assert b"retry-after" in refused
        finally:
            for connection in halves:
                connection.close()
        wait_until(lambda: not small.service._in_flight, PATIENCE_S)
        whole = {"class_labels": [1], "num_inference_steps": 1, "user": "x"}
        assert httpx2.post(f"{small.url}{IMAGES}", json=whole, timeout=PATIENCE_S).status_code == 200


# Ids.


def test_clients_may_choose_the_same_id(gated: ThreadServer, wait_until: Any) -> None:
    """Also while the engine still ends the request of a client that is gone."""
    gate.shut(after=2)
    try:
        body = json.dumps({**SMALL, "num_inference_steps": 50}).encode()
        with send(gated, head(IMAGES, len(body), "X-Request-Id: same") + body):
            assert gate.is_holding.wait(PATIENCE_S)
        with ThreadPoolExecutor(4) as clients:
            asked = [
                clients.submit(
                    httpx2.post,
                    f"{gated.url}{IMAGES}",
                    json={**SMALL, "n": n},
                    headers={"x-request-id": name},
                    timeout=PATIENCE_S,
                )
                for name, n in (("same", 1), ("same", 2), ("same-0", 1), ("same", 2))
            ]
            wait_until(lambda: len(gated.service._used_ids) == 1 + 6, PATIENCE_S)
            gate.open()
            answers = [one.result(PATIENCE_S) for one in asked]
    finally:
        gate.open()
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [answer.headers["x-request-id"] for answer in answers] == ["same", "same", "same-0", "same"]
    wait_until(lambda: not gated.service._used_ids, PATIENCE_S)


# Clients that go away.


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_goes_away_ends_all_that_it_asked_for(gated: ThreadServer, stream: bool, wait_until: Any) -> None:
    gate.shut(after=5)
    try:
        body = json.dumps({**SMALL, "num_inference_steps": 100, "n": 3, "stream": stream}).encode()
        with send(gated, head(IMAGES, len(body)) + body):
            assert gate.is_holding.wait(PATIENCE_S)
        wait_until(lambda: not gated.service._running, PATIENCE_S)
    finally:
        gate.open()
    stats = gated.service.engine.engine.stats
    wait_until(lambda: stats(ask_workers=False).running + stats(ask_workers=False).waiting == 0, PATIENCE_S)
    assert gate.forwards <= 3 * (5 + 2)


def test_nothing_is_left_of_clients_that_go_away_anywhere(running: ThreadServer, wait_until: Any) -> None:
    bodies = [
        json.dumps({**SMALL, "num_inference_steps": 30, "n": n, "stream": stream, "partial_images": 2}).encode()
        for n in (1, 3)
        for stream in (False, True)
    ]

    def come_and_go(seed: int) -> None:
        body = bodies[seed % len(bodies)]
        whole = head(IMAGES, len(body), f"X-Request-Id: same-{seed % 3}") + body
        with send(running, whole[: len(whole) if seed % 3 else seed * 7 % len(whole)]) as connection:
            if seed % 5 == 0:  # a reset instead of an end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.settimeout((seed * 13 % 20) / 100 + 0.01)
            with contextlib.suppress(OSError):
                connection.recv(1 << 16)

    def counts() -> tuple[int, ...]:
        async def count() -> int:
            return len(asyncio.all_tasks())

        tasks = asyncio.run_coroutine_threadsafe(count(), running.server._loop).result(PATIENCE_S)  # type: ignore[arg-type]
        service = running.service
        return (tasks, psutil.Process().num_fds(), len(service._running), len(service._used_ids), service._in_flight)

    wait_until(lambda: not running.server.server_state.connections, PATIENCE_S)
    before = counts()
    with ThreadPoolExecutor(8) as clients:
        list(clients.map(come_and_go, range(300)))
    wait_until(lambda: not running.server.server_state.connections and counts() == before, PATIENCE_S)
    with client_of(running) as client:
        assert client.images.generate(prompt="x", extra_body={"num_inference_steps": 1}).data
