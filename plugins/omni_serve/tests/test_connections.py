"""Connections whose headers do not come, or are none."""

from __future__ import annotations

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
