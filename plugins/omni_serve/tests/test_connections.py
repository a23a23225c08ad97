"""Connections whose headers do not come, or are none."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx2
import pytest
from sockets import head, received, send

from omni_serve.http import connection as connection_module
from serving import ThreadServer

IMAGES = "v1/images/generations"
GET = b"GET /live HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "HEADERS_S", 0.3)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("sent", [b"", b"GET", GET, GET + b"X: "], ids=["nothing", "a word", "a header", "half a line"])
def test_headers_that_do_not_come(running: ThreadServer, sent: bytes) -> None:
    assert received(send(running, sent)) == b""
    assert httpx2.get(f"{running.url}live").status_code == 200


@pytest.mark.usefixtures("hasty")
def test_headers_of_a_further_request_that_do_not_come(running: ThreadServer) -> None:
    connection = send(running, GET + b"\r\n")
    answer = b""
    while not answer.endswith(b"}"):  # head and body may come apart
        answer += connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 200")
    connection.sendall(GET)
    assert received(connection) == b""


@pytest.mark.usefixtures("hasty")
def test_what_is_being_answered_is_not_cut_off_by_the_half_of_another(gated: ThreadServer, wait_until: Any) -> None:
    from gated_model import gate

    gate.shut(after=2)
    body = json.dumps({"prompt": "x", "num_inference_steps": 3, "size": "32x32", "seed": 1}).encode()
    connection = send(gated, head(IMAGES, len(body)) + body + GET)
    try:
        assert gate.is_holding.wait(30)
        ended: list[bool] = []
        gated.server._loop.call_soon_threadsafe(  # type: ignore[union-attr]
            lambda: gated.server._loop.call_later(1.0, ended.append, True)  # type: ignore[union-attr]
        )
        wait_until(lambda: bool(ended))  # three times as long as headers may take
    finally:
        gate.open()
    answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"b64_json" in answer


def test_what_is_no_http(running: ThreadServer) -> None:
    answer = received(send(running, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"))
    head_of_answer, _, body = answer.partition(b"\r\n\r\n")
    assert head_of_answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"


@pytest.mark.parametrize("piece", [b"X: " + b"y" * 1000 + b"\r\n", b"y" * 1000], ids=["many headers", "a long one"])
def test_headers_that_are_too_long(running: ThreadServer, piece: bytes) -> None:
    connection = send(running, GET + b"X: ")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server is done with it
        for _ in range(2000):
            connection.sendall(piece)
    with contextlib.suppress(ConnectionResetError):
        answer = received(connection)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    assert httpx2.get(f"{running.url}live").status_code == 200


def test_a_client_that_goes_away_after_it_has_sent_a_further_request(gated: ThreadServer, wait_until: Any) -> None:
    from gated_model import gate

    gate.shut(after=2)
    body = json.dumps({"prompt": "x", "num_inference_steps": 50, "size": "32x32", "seed": 1}).encode()
    connection = send(gated, head(IMAGES, len(body)) + body + GET + b"\r\n")
    try:
        assert gate.is_holding.wait(30)
        connection.close()
        gated.observer.ended.clear()
    finally:
        gate.open()
    wait_until(lambda: len(gated.observer.ended) == 1, 30)
    [output] = gated.observer.ended.values()
    assert output.finish_reason == "aborted"


def test_further_requests_are_answered_in_order(running: ThreadServer) -> None:
    asked = [GET + b"\r\n", b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"] * 4
    connection = send(
        running, b"".join(asked) + b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    answers = received(connection).split(b"HTTP/1.1 ")[1:]
    assert [one[:3] for one in answers] == [b"200"] * 8 + [b"404"]
    assert [b"data" in one for one in answers[:8]] == [False, True] * 4


def test_a_client_that_does_not_read_is_given_up(
    monkeypatch: pytest.MonkeyPatch, editing: ThreadServer, wait_until: Any
) -> None:
    monkeypatch.setattr(connection_module, "STALL_S", 0.3)
    content = ("image/png", b"v" * (30 << 20))
    keeping = editing.service.jobs.keep("image", "m", {}, {"image": content})
    job = asyncio.run_coroutine_threadsafe(keeping, editing.server._loop).result(30)  # type: ignore[arg-type]
    request = f"GET /v1/files/{job.id}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with send(editing, request) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        wait_until(lambda: not editing.server.server_state.connections, 30)


def test_trailers_are_no_headers_and_are_bounded(running: ThreadServer) -> None:
    chunked = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    connection = send(running, chunked + b"X-Request-Id: of-a-trailer\r\nConnection: close\r\n\r\n")
    assert b"of-a-trailer" not in connection.recv(1 << 16)
    connection.close()
    connection = send(running, chunked)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(2000):
            connection.sendall(b"a:b\r\n" * 1000)
    connection.close()
    assert httpx2.get(f"{running.url}live").status_code == 200


def test_a_body_with_an_upgrade_is_not_taken_for_a_further_request(running: ThreadServer) -> None:
    inner = GET + b"\r\n"
    asked = head(IMAGES, len(inner), "Connection: Upgrade", "Upgrade: h2c")
    connection = send(running, asked)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(inner)
    answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    connection.close()
