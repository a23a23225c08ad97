"""The end of a server: what was accepted is answered, streams are told, and a second signal ends it at once."""

from __future__ import annotations

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from serving import PATIENCE_S, ProcessServer, ServeProcess, client_of, picture_of

# Enough for the signal to come before the end, on any machine.
LONG = 100


def ask(running: ProcessServer, seed: int, **fields: Any) -> openai.types.ImagesResponse:
    with client_of(running, timeout=PATIENCE_S) as client:
        return client.images.generate(prompt="a red seven", extra_body={"seed": seed, **fields})


def wait_for_work(running: ProcessServer, number: int, wait_until: Any) -> None:
    def has_it() -> bool:
        stats = httpx2.get(f"{running.url}v1/omni/stats").json()
        return bool(stats["running"] + stats["waiting"] >= number)

    wait_until(has_it, PATIENCE_S)


def test_every_accepted_request_is_answered(serve_process: ServeProcess, tmp_path: Path, wait_until: Any) -> None:
    with serve_process(tmp_path, "--drain-timeout-s", "120") as running, ThreadPoolExecutor(12) as clients:
        asked = [clients.submit(ask, running, seed, num_inference_steps=LONG) for seed in range(12)]
        wait_for_work(running, 12, wait_until)
        running.signal(signal.SIGTERM)
        wait_until(lambda: "shutting down" in running.log.read_text(), PATIENCE_S)
        with httpx2.Client(base_url=running.url) as client:
            refused = client.post("v1/images/generations", json={"prompt": "a red seven"})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert int(refused.headers["retry-after"]) >= 1
            ready = client.get("ready")
            assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
            assert client.get("live").status_code == 200
        answers = [one.result(PATIENCE_S) for one in asked]
        assert [answer.seed for answer in answers] == [[seed] for seed in range(12)]
        assert all(picture_of(answer.data[0].b64_json).size == (32, 32) for answer in answers)
        assert running.wait() == 0
    assert "Traceback" not in running.log.read_text()


def test_a_stream_that_is_not_done_in_time_is_told(
    serve_process: ServeProcess, tmp_path: Path, wait_until: Any
) -> None:
    with serve_process(tmp_path, "--drain-timeout-s", "0.2") as running, client_of(running) as client:
        stream = client.images.generate(
            prompt="a red seven", stream=True, partial_images=20, extra_body={"num_inference_steps": 100_000}
        )
        wait_for_work(running, 1, wait_until)
        running.signal(signal.SIGTERM)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert not isinstance(caught.value, openai.APIConnectionError), "it was cut off without a word"
        assert "aborted" in caught.value.message
        assert running.wait() == 0
    assert "Traceback" not in running.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_ends_it_at_once(
    serve_process: ServeProcess, tmp_path: Path, wait_until: Any, number: signal.Signals
) -> None:
    with serve_process(tmp_path, "--drain-timeout-s", "600") as running:
        gone = threading.Event()

        def swallow() -> None:
            with pytest.raises((openai.APIError, httpx2.HTTPError)):
                ask(running, 1, num_inference_steps=100_000)
            gone.set()

        asking = threading.Thread(target=swallow)
        asking.start()
        wait_for_work(running, 1, wait_until)
        running.signal(number)
        wait_until(lambda: "shutting down" in running.log.read_text(), PATIENCE_S)
        running.signal(number)
        assert running.wait(20) == 0
        assert gone.wait(PATIENCE_S)
        asking.join(PATIENCE_S)
    assert "Traceback" not in running.log.read_text()


def test_an_idle_server_ends_at_once_and_says_little(serve_process: ServeProcess, tmp_path: Path) -> None:
    with serve_process(tmp_path, "--log-format", "json") as running:
        with httpx2.Client(base_url=running.url) as client:  # a connection that is kept open
            assert client.get("live").status_code == 200
            assert client.get("v1/models", headers={"x-request-id": "seen"}).status_code == 200
            running.signal(signal.SIGTERM)
            assert running.wait(20) == 0
    lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    [seen] = [line for line in lines if line.get("event") == "request"]
    assert (seen["path"], seen["status"], seen["request_id"]) == ("/v1/models", 200, "seen")
