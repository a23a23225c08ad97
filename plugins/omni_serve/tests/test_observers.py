"""What plugins are told of the server, and what they may show at `/metrics`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from gated_model import gate
from sockets import head, received, send

from omni_serve.settings import ServeSettings
from serving import FACTORIES, PATIENCE_S, ThreadServer, thread_server

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"
VIDEO = {"prompt": "waves", "num_inference_steps": 2, "num_frames": 5, "width": 16, "height": 16}
VIDEO |= {"max_sequence_length": 16}


@pytest.fixture(scope="module")
def watched() -> Iterator[ThreadServer]:
    with thread_server(ServeSettings(port=0, api_keys=("a-key-of-the-client",))) as made:
        yield made


@pytest.fixture
def client(watched: ThreadServer) -> Iterator[httpx2.Client]:
    headers = {"authorization": "Bearer a-key-of-the-client"}
    with httpx2.Client(base_url=watched.url, timeout=PATIENCE_S, headers=headers) as made:
        yield made


def test_each_request_is_told_by_its_route(watched: ThreadServer, client: httpx2.Client, wait_until: Any) -> None:
    watched.observer.http.clear()
    watched.observer.seconds.clear()
    body = {"prompt": "a red seven", "num_inference_steps": 2}
    assert client.post("v1/images/generations", json=body).status_code == 200
    assert client.post("v1/images/generations", json={}).status_code == 400
    assert client.get("v1/videos/video_000000000000000000000000").status_code == 404
    assert client.get("v1/models/that-is-not-there").status_code == 404
    assert client.get("").status_code == 200
    assert client.get("page/app.js").status_code == 200
    assert client.get("no/such/path").status_code == 404
    assert client.put("v1/videos").status_code == 405
    assert client.request("PROPFIND", "live").status_code == 405
    assert client.get("v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
    wanted = [
        ("POST", "/v1/images/generations", 200),
        ("POST", "/v1/images/generations", 400),
        ("GET", "/v1/videos/{job_id}", 404),
        ("GET", "/v1/models/{name:path}", 404),
        ("GET", "/", 200),
        ("GET", "/page", 200),
        ("GET", "other", 404),
        ("PUT", "/v1/videos", 405),
        ("other", "/live", 405),
        ("GET", "/v1/models", 401),
    ]
    wait_until(lambda: len(watched.observer.http) >= len(wanted), PATIENCE_S)
    # That of a file is told after its answer, and perhaps after the next request.
    assert sorted(watched.observer.http) == sorted(wanted)
    assert all(0 < seconds < PATIENCE_S for seconds in watched.observer.seconds)
    taken = dict(zip(watched.observer.http, watched.observer.seconds, strict=True))
    assert taken["POST", "/v1/images/generations", 200] > taken["GET", "/v1/models/{name:path}", 404]
    assert watched.observer.disconnects == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_is_told_of(gated: ThreadServer, stream: bool, wait_until: Any) -> None:
    gated.observer.http.clear()
    gated.observer.disconnects.clear()
    content = f'{{"prompt": "a", "num_inference_steps": 50, "stream": {str(stream).lower()}}}'.encode()
    gate.shut(after=2)
    try:
        with send(gated, head("v1/images/generations", len(content)) + content):
            assert gate.is_holding.wait(PATIENCE_S)
        wait_until(lambda: gated.observer.disconnects, PATIENCE_S)
    finally:
        gate.open()
    assert gated.observer.disconnects == ["/v1/images/generations"]
    assert gated.observer.http == [("POST", "/v1/images/generations", 200 if stream else 499)]


def test_the_context_of_a_trace_reaches_the_engine(watched: ThreadServer, client: httpx2.Client) -> None:
    body = {"prompt": "a red seven", "num_inference_steps": 2, "user": "somebody"}
    for request_id, sent, kept in (
        ("both", {"traceparent": PARENT, "tracestate": "acme=1"}, {"traceparent": PARENT, "tracestate": "acme=1"}),
        ("none", {"tracestate": "acme=1"}, {}),
        ("wrong", {"traceparent": "00-zz"}, {}),
        ("long", {"traceparent": PARENT, "tracestate": "a" * 600}, {"traceparent": PARENT}),
    ):
        answer = client.post("v1/images/generations", json=body, headers={"x-request-id": request_id, **sent})
        assert answer.status_code == 200
        assert watched.observer.metadata[request_id] == {**kept, "user": "somebody"}
    chat = {"messages": [{"role": "user", "content": "a red seven"}], "num_inference_steps": 2}
    headers = {"x-request-id": "chat", "traceparent": PARENT}
    assert client.post("v1/chat/completions", json=chat, headers=headers).status_code == 200
    assert watched.observer.metadata["chat"] == {"traceparent": PARENT}


def test_jobs_are_told_from_state_to_state(wait_until: Any) -> None:
    with (
        thread_server(model=f"{FACTORIES}:video") as making,
        httpx2.Client(base_url=making.url, timeout=PATIENCE_S) as client,
    ):
        told = making.observer.jobs
        wait_until(lambda: told, PATIENCE_S)
        empty = {"queued": 0, "in_progress": 0, "completed": 0, "failed": 0}
        assert told == [(None, "", empty)]
        job = client.post("v1/videos", json=VIDEO, headers={"traceparent": PARENT}).json()["id"]
        wait_until(lambda: told[-1][1] == "completed", PATIENCE_S)
        assert making.observer.metadata[job] == {"traceparent": PARENT}
        again = client.post(f"v1/videos/{job}/remix", json={"prompt": "clouds"}).json()["id"]
        wait_until(lambda: told[-1][:2] == (again, "completed"), PATIENCE_S)
        assert making.observer.metadata[again] == {}, "the trace was the other request's"
        assert client.delete(f"v1/videos/{job}").status_code == 200
        wait_until(lambda: told[-1][1] == "deleted", PATIENCE_S)
        states = ("queued", "in_progress", "completed")
        assert [one[:2] for one in told[1:]] == [(one, it) for one in (job, again) for it in states] + [
            (job, "deleted")
        ]
        assert told[-1][2] == {**empty, "completed": 1}


def test_what_a_plugin_shows_at_metrics(watched: ThreadServer, client: httpx2.Client) -> None:
    answer = client.get("metrics")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_installed")
    assert "omni-metrics[prometheus]" in answer.json()["error"]["message"]
    watched.observer.text = "# TYPE acme gauge\nacme 1\n"
    try:
        answer = client.get("metrics")
    finally:
        watched.observer.text = None
    assert (answer.status_code, answer.text) == (200, "# TYPE acme gauge\nacme 1\n")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_a_plugin_that_fails_harms_no_answer(watched: ThreadServer, client: httpx2.Client) -> None:
    watched.observer.text = 3  # type: ignore[assignment]  # no text
    try:
        answer = client.get("metrics")
    finally:
        watched.observer.text = None
    assert answer.status_code == 500
    assert "omni_metrics" in answer.json()["error"]["message"]
    assert client.get("live").status_code == 200


def test_a_raw_request_without_a_route_is_told(watched: ThreadServer, wait_until: Any) -> None:
    watched.observer.http.clear()
    answer = received(send(watched, b"GET /v1/models HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n"))
    assert b"401" in answer.split(b"\r\n")[0]
    wait_until(lambda: watched.observer.http, PATIENCE_S)
    assert watched.observer.http == [("GET", "/v1/models", 401)]
