"""A real Prometheus reads while requests finish, fail, are aborted, refused and retried: each count is the test's."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from engines import FAULTY, PATIENCE_S, ask, counted
from scraping import needs_prometheus, prometheus, promtool, read

from omni_core import hookimpl
from omni_core.errors import PipelineError, RequestError, RequestTimeoutError, WorkerDiedError
from omni_core.testing.injection import begun_file, fault


class Started:
    """Notes where each request began."""

    def __init__(self) -> None:
        self.replicas: dict[str, int] = {}

    @hookimpl
    def omni_request_started(self, request_id: str, replica: int) -> None:
        self.replicas[request_id] = replica


@needs_prometheus
def test_each_count_is_what_happened(tmp_path: Path, wait_until: Any) -> None:
    config = {"executor_class": "multiproc", "data_parallel_size": 2, "model": FAULTY, "max_retries": 1}
    started = Started()
    with counted(started, **config, max_prompt_length=100) as (engine, observer):
        assert observer.address is not None
        target = observer.address.removeprefix("http://").removesuffix("/metrics")
        with prometheus(tmp_path, target) as server:
            fine = engine.step([ask(seed) for seed in range(8)], PATIENCE_S)
            assert [output.finish_reason for output in fine] == ["finished"] * 8

            raising = engine.step([ask(9, extra_args={"fault": fault("raise")})], PATIENCE_S)[0]
            assert isinstance(raising.error, PipelineError)
            late = engine.step([ask(10, num_inference_steps=5000, timeout_s=0.3)], PATIENCE_S)[0]
            assert isinstance(late.error, RequestTimeoutError)
            unwanted = engine.submit(ask(11, num_inference_steps=5000))
            wait_until(lambda: engine.stats(ask_workers=False).running, PATIENCE_S)
            unwanted.abort()
            assert unwanted.result(PATIENCE_S).finish_reason == "aborted"
            for _ in range(3):
                with pytest.raises(RequestError):
                    engine.submit(ask(12, prompt="a" * 200))

            killed, retries, company = 0, 0, 4
            for number in range(2):
                held = tmp_path / f"held-{number}"
                waiting = fault("wait", once=tmp_path / f"once-{number}", file=held)
                seeds = range(100 * number, 100 * number + company)
                others = engine.submit_all([ask(seed, num_inference_steps=40) for seed in seeds])
                handle = engine.submit(ask(20 + number, extra_args={"fault": waiting}))
                wait_until(begun_file(held).exists, PATIENCE_S)
                place = started.replicas[handle.request_id]
                [worker] = [one for one in engine.executor.worker_stats() if one.replica == place]
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGKILL)
                killed += 1
                outputs = [one.result(PATIENCE_S).raise_for_error() for one in (handle, *others)]
                assert outputs[0].metrics.num_retries == 1
                retries += sum(output.metrics.num_retries for output in outputs)
            finished = 8 + killed * (1 + company)

            poison = engine.step([ask(30, extra_args={"fault": fault("exit")})], PATIENCE_S)[0]
            assert isinstance(poison.error, WorkerDiedError)
            deaths = killed + 2  # the poison is run again once

            wait_until(lambda: all(one.state == "idle" for one in engine.executor.worker_stats()), PATIENCE_S)
            expected = {
                "omni_requests_accepted_total": finished + 4,
                'omni_requests_total{reason="finished"}': finished,
                'omni_requests_total{reason="error"}': 2,
                'omni_requests_total{reason="timeout"}': 1,
                'omni_requests_total{reason="aborted"}': 1,
                'omni_request_failures_total{error="PipelineError"}': 1,
                'omni_request_failures_total{error="RequestTimeoutError"}': 1,
                'omni_request_failures_total{error="WorkerDiedError"}': 1,
                "omni_request_failures_total": 3,
                'omni_requests_refused_total{error="RequestError"}': 3,
                "omni_requests_refused_total": 3,
                "omni_request_retries_total": retries + 1,
                "omni_worker_deaths_total": deaths,
                "omni_worker_starts_total": 2 + deaths,
                "omni_worker_restarts_total": deaths,
                "omni_worker_up": 2,
                "omni_replica_ready": 2,
                "omni_request_duration_seconds_count": finished + 4,
                "omni_request_queue_seconds_count": finished + 4,
                "omni_request_denoise_seconds_count": finished,
                "omni_request_steps_sum": (8 + killed) * 6 + killed * company * 40,
                'omni_outputs_total{kind="image"}': finished,
                "omni_output_pixels_count": finished,
                "omni_requests_running": 0,
                "omni_requests_waiting": 0,
                "up": 1,
            }

            def read_by_prometheus() -> dict[str, float]:
                return {expression: server.total(expression) for expression in expected}

            wait_until(lambda: read_by_prometheus() == expected, PATIENCE_S)
            assert server.total("min_over_time(up[10m])") == 1, "a scrape failed"
            assert server.total("sum(resets(omni_requests_accepted_total[10m]))") == 0
            # What every forward served adds up to what requests were given.
            text = read(observer.address)
            assert promtool("check", "metrics", given=text) == ""
            assert server.total("omni_denoiser_calls_total") >= server.total("omni_denoising_steps_total") >= 60
