"""A scrape: whose numbers are in it, that it waits for no worker, and that nothing grows."""

from __future__ import annotations

import gc
import os
import signal
import statistics
import time
from typing import Any

import psutil
import pytest
from engines import PATIENCE_S, ask, counted, plugins
from scraping import families, needs_promtool, promtool, read, series, value

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniRequestOutput
from omni_core.errors import PipelineError, RequestError
from omni_core.outputs import ForwardReport, RequestMetrics
from omni_metrics.options import MetricsOptions
from omni_metrics.prometheus.plugin import PrometheusObserver
from omni_metrics.tracing.plugin import TraceObserver


def test_two_engines_are_two_label_sets() -> None:
    observer = PrometheusObserver(MetricsOptions(port=0))
    registry = plugins(observer)
    config = OmniDiffusionConfig(log_level="error")
    with DiffusionEngine(config, plugins=registry) as first:
        address = observer.address
        assert address is not None
        with DiffusionEngine(config, plugins=registry) as second:
            first.step([ask(1), ask(2)], PATIENCE_S)
            second.step([ask(3)], PATIENCE_S)
            text = read(address)
            for engine, number in ((first, 2), (second, 1)):
                assert value(text, "omni_requests_accepted_total", engine=engine.engine_id) == number
                assert value(text, "omni_engine_info", engine=engine.engine_id) == 1
                own = observer.omni_metrics(engine.engine_id)
                assert own is not None
                assert {dict(labels)["engine"] for _, labels in series(own) if dict(labels).get("engine")} == {
                    engine.engine_id
                }
            assert len(text.splitlines()) == len(set(text.splitlines())), "a family is there twice"
        assert observer.address == address, "the port is open as long as an engine is"
        assert {dict(labels).get("engine") for _, labels in series(read(address))} == {first.engine_id, None}
    assert observer.address is None
    assert observer.text().count("omni_") == 0
    with pytest.raises(OSError, match="refused"):
        read(address)


@needs_promtool
@pytest.mark.parametrize("executor", ["inline", "multiproc"])
def test_promtool_finds_nothing_to_mend(executor: str) -> None:
    with counted(executor_class=executor) as (engine, observer):
        engine.step([ask(1)], PATIENCE_S)
        assert observer.address is not None
        text = read(observer.address)
    assert promtool("check", "metrics", given=text) == ""
    has_workers = executor != "inline"
    assert ("omni_worker_up" in families(text)) is has_workers
    assert value(text, "omni_replica_ready", replica="0") == 1
    assert value(text, "omni_engine_info", executor=executor, model="omni/digits") == 1
    assert value(text, "process_resident_memory_bytes") > 1e6


@pytest.mark.alone
def test_a_scrape_while_every_worker_is_stopped(record_property: Any, wait_until: Any) -> None:
    with counted(executor_class="multiproc", data_parallel_size=2) as (engine, observer):
        engine.step([ask(1), ask(2)], PATIENCE_S)
        handles = engine.submit_all([ask(seed, num_inference_steps=3000) for seed in range(4)])
        wait_until(lambda: engine.stats(ask_workers=False).running == 4, PATIENCE_S)
        pids = [worker.pid for worker in engine.executor.worker_stats() if worker.pid is not None]
        assert len(pids) == 2
        assert observer.address is not None
        seconds = []
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            for _ in range(41):
                begun = time.perf_counter()
                text = read(observer.address)
                seconds.append(time.perf_counter() - begun)
            assert value(text, "omni_requests_running") == 4
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        for handle in handles:
            handle.abort()
        for handle in handles:
            handle.result(PATIENCE_S)
    record_property("median_ms", statistics.median(seconds) * 1e3)
    assert statistics.median(seconds) < 0.05, seconds


def test_a_kind_that_stacks_is_counted() -> None:
    with counted() as (engine, observer):
        engine.step([ask(seed, num_inference_steps=20) for seed in range(4)], PATIENCE_S)
        text = observer.text()
        assert value(text, "omni_stacking_kinds", verdict="verified") == 1
        assert value(text, "omni_stacking_kinds", verdict="refused") == 0
        rows = value(text, "omni_forward_rows_sum") / value(text, "omni_forward_rows_count")
        assert rows > 2.5, "requests ran together: guidance alone makes two rows"


def test_a_scrape_shows_what_waits_and_what_sleeps(wait_until: Any) -> None:
    with counted(max_num_seqs=1) as (engine, observer):
        handles = engine.submit_all([ask(seed, num_inference_steps=3000) for seed in range(3)])
        wait_until(lambda: value(observer.text(), "omni_requests_waiting") == 2, PATIENCE_S)
        assert value(observer.text(), "omni_requests_running") == 1
        for handle in handles:
            handle.abort()
            handle.result(PATIENCE_S)
        assert value(observer.text(), "omni_sleep_level") == 0
        engine.sleep(1)
        assert value(observer.text(), "omni_sleep_level") == 1
        engine.wake_up()
        assert value(observer.text(), "omni_sleep_level") == 0


def test_ten_thousand_requests_do_not_grow_the_process(collector: Any, record_property: Any) -> None:
    """What an engine tells of requests, without the model: each hook, with both halves listening."""
    prometheus = PrometheusObserver(MetricsOptions())
    traces = TraceObserver(MetricsOptions(forwards=True, prompts=True))
    registry = plugins(prometheus, traces)
    config = OmniDiffusionConfig(log_level="error", data_parallel_size=1)
    with DiffusionEngine(config, plugins=registry) as engine:
        told = {"engine_id": engine.engine_id}

        def tell_of(numbers: range) -> None:
            for number in numbers:
                request = ask(number, metadata={"user": f"user-{number}"})
                about = {"request_id": request.request_id, "request": request, **told}
                forwards = [ForwardReport((request.request_id,), 2, 0.001)] * 2
                registry.notify("omni_request_queued", **about)
                registry.notify("omni_request_started", replica=0, **about)
                registry.notify("omni_step_done", replica=0, seconds=0.002, forwards=forwards, **told)
                registry.notify("omni_request_retried", replica=0, reason=f"{number}", num_retries=1, **about)
                metrics = RequestMetrics(0.1, 0.1, 0.2, 0.1, num_steps=2)
                output = OmniRequestOutput(request.request_id, number, "finished", {"images": []}, metrics=metrics)
                if number % 3 == 0:
                    registry.notify("omni_request_finished", output=output, **about)
                elif number % 3 == 1:
                    output = OmniRequestOutput.ended(request, "aborted")
                    registry.notify("omni_request_finished", output=output, **about)
                else:
                    error = PipelineError(f"{number} went wrong")
                    output = OmniRequestOutput.failed(request, error, metrics)
                    registry.notify("omni_request_failed", output=output, error=error, **about)
                    registry.notify("omni_request_refused", error=RequestError(f"{number}"), **about)
                registry.notify("omni_http_request", route="/", method="GET", status=200, seconds=0.1, **told)

        process = psutil.Process()
        tell_of(range(3000))
        collector.forget()
        gc.collect()
        before, size = process.memory_info().rss, len(prometheus.text().splitlines())
        for start in range(0, 10_000, 2500):
            tell_of(range(start, start + 2500))
            collector.forget()
        gc.collect()
        grown = process.memory_info().rss - before
        assert len(prometheus.text().splitlines()) == size
        assert traces._engines[engine.engine_id].num_running == 0
        assert value(prometheus.text(), "omni_requests_accepted_total") == 13_000
        record_property("grown_mb", grown / 1e6)
        assert grown < 4e6
