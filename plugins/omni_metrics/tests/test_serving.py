"""Behind `omni serve`: a real Prometheus reads `/metrics`, and a trace goes from the client's header to the decoder."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from collector import Collector, attributes_of, seconds_of
from engines import PATIENCE_S
from scraping import needs_prometheus, prometheus, promtool, value
from served import served

from omni_metrics.options import MetricsOptions
from omni_metrics.prometheus.plugin import PrometheusObserver
from omni_metrics.tracing.plugin import TraceObserver
from omni_serve.settings import ServeSettings

KEY = "a-key-of-the-client"
TRACE, CALLER = "c3" * 16, "d4" * 8
VIDEO = {"prompt": "waves", "num_inference_steps": 2, "num_frames": 5, "width": 16, "height": 16}
VIDEO |= {"max_sequence_length": 16}


def client_of(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, timeout=PATIENCE_S, headers={"authorization": f"Bearer {KEY}"})


@needs_prometheus
def test_each_count_of_a_server_is_what_happened(tmp_path: Path, wait_until: Any) -> None:
    settings = ServeSettings(port=0, api_keys=(KEY,))
    with (
        served(PrometheusObserver(MetricsOptions()), settings=settings) as (url, server),
        client_of(url) as client,
        prometheus(tmp_path, urlsplit(url).netloc, KEY) as reader,
    ):
        body = {"prompt": "a red seven", "num_inference_steps": 3, "n": 2}
        for _ in range(3):
            assert client.post("v1/images/generations", json=body).status_code == 200
        for size in ("no size", "1x", ""):
            assert client.post("v1/images/generations", json={**body, "size": size}).status_code == 400
        for number in range(5):
            assert client.get(f"no/such/path/{number}").status_code == 404
        engine = server.service.engine.engine
        slow = json.dumps({"prompt": "a", "num_inference_steps": 5000}).encode()
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
            head = "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            head += f"Authorization: Bearer {KEY}\r\nContent-Length: {len(slow)}\r\n\r\n"
            connection.sendall(head.encode() + slow)
            wait_until(lambda: engine.stats(ask_workers=False).running == 1, PATIENCE_S)
        pictures = 'route="/v1/images/generations"'
        expected = {
            f'omni_http_requests_total{{{pictures},status="200"}}': 3,
            f'omni_http_requests_total{{{pictures},status="400"}}': 3,
            f'omni_http_requests_total{{{pictures},status="499"}}': 1,
            'omni_http_requests_total{route="other",status="404"}': 5,
            f"omni_http_request_duration_seconds_count{{{pictures}}}": 7,
            "omni_http_disconnects_total": 1,
            'omni_requests_total{reason="finished"}': 6,
            'omni_requests_total{reason="aborted"}': 1,
            "omni_outputs_total": 6,
            "omni_jobs": 0,
            "up": 1,
        }
        wait_until(lambda: {one: reader.total(one) for one in expected} == expected, PATIENCE_S)
        assert reader.total("min_over_time(up[10m])") == 1
        assert len(reader.query('count by (route) (omni_http_requests_total{route="other"})')) == 1
        assert promtool("check", "metrics", given=client.get("metrics").text) == ""


def test_the_jobs_of_a_server(wait_until: Any) -> None:
    model = "omni_core.testing.pipelines:video"
    with (
        served(PrometheusObserver(MetricsOptions()), model=model) as (url, _),
        client_of(url) as client,
    ):

        def count(name: str, status: str) -> float:
            return value(client.get("metrics").text, name, status=status)

        ids = [client.post("v1/videos", json=VIDEO).json()["id"] for _ in range(2)]
        wait_until(lambda: count("omni_jobs", "completed") == 2, PATIENCE_S)
        assert client.delete(f"v1/videos/{ids[0]}").status_code == 200
        wait_until(lambda: count("omni_jobs", "completed") == 1, PATIENCE_S)
        changes = {state: count("omni_job_changes_total", state) for state in ("queued", "in_progress", "completed")}
        assert changes == {"queued": 2, "in_progress": 2, "completed": 2}
        assert count("omni_job_changes_total", "deleted") == 1
        assert value(client.get("metrics").text, "omni_outputs_total", kind="video") == 2


def test_one_trace_from_the_clients_header_to_the_decoder(collector: Collector) -> None:
    context = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    with served(TraceObserver(MetricsOptions())) as (url, _), client_of(url) as client:
        body = {"prompt": "a red seven", "num_inference_steps": 3}
        answer = client.post("v1/images/generations", json=body, headers={**context, "x-request-id": "drawn"})
        [metrics] = answer.json()["metrics"]
    [trace] = collector.traces(1)
    assert (trace.root.trace_id.hex(), trace.root.parent_span_id.hex()) == (TRACE, CALLER)
    assert attributes_of(trace.root)["gen_ai.response.id"] == "drawn"
    assert trace.names == ["queue", "encode", "denoise", "decode"]
    assert {one.trace_id.hex() for one in trace.children} == {TRACE}
    for one in trace.children:
        assert abs(seconds_of(one) - metrics[f"{one.name}_s"]) < 1e-3


def test_a_job_is_part_of_the_trace_of_who_has_made_it(collector: Collector, wait_until: Any) -> None:
    context = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    model = "omni_core.testing.pipelines:video"
    with served(TraceObserver(MetricsOptions()), model=model) as (url, _), client_of(url) as client:
        job = client.post("v1/videos", json=VIDEO, headers=context).json()["id"]
        wait_until(lambda: client.get(f"v1/videos/{job}").json()["status"] == "completed", PATIENCE_S)
    [trace] = collector.traces(1)
    assert (trace.root.trace_id.hex(), trace.root.parent_span_id.hex()) == (TRACE, CALLER)
    about = attributes_of(trace.root)
    assert (about["gen_ai.response.id"], about["gen_ai.output.type"]) == (job, "video")
