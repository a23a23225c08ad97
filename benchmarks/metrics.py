"""What the observers of omni-metrics cost: the same engine with and without them, in turns.

    pip install './plugins/omni_metrics[prometheus,otel]'
    python benchmarks/metrics.py [--rounds 400]

One engine with the small model does the same request again and again; in every other turn its observers are told
nothing. Two engines would not do: they differ by some 3 % for where their weights happen to lie. A turn ends when the
observers have taken note of the end of its requests. The ratio is that of each pair of turns, of the seconds and of the
CPU time of the process. Pairs without any observer show how exact that is.

What is done at other times is measured by itself: a scrape, and sending the spans of a request to a collector in a
process of its own, which drops them. So is one call of each hook.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, OmniRequestOutput, PluginRegistry
from omni_core.outputs import ForwardReport, RequestMetrics
from omni_metrics.options import MetricsOptions
from omni_metrics.prometheus.plugin import PrometheusObserver
from omni_metrics.tracing.plugin import TraceObserver

_PATIENCE_S = 60.0
_CALLS = 5000


def collect(connection: Any) -> None:
    """Take what is sent, and drop it. In a process of its own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        connection.send(server.server_port)
        server.serve_forever()


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """Run a collector and give its address."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=collect, args=(theirs,), daemon=True)
    process.start()
    try:
        if not ours.poll(_PATIENCE_S):
            raise RuntimeError("the collector does not start")
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join(_PATIENCE_S)


class Switch(PluginRegistry):
    """Plugins that are told of nothing while `is_on` is False."""

    is_on = True

    def notify(self, hook_name: str, /, **kwargs: Any) -> None:
        if self.is_on:
            super().notify(hook_name, **kwargs)


def compare(names: list[str], rounds: int, companions: int) -> None:
    """Print what requests take with some of the observers against without."""
    prometheus, provider = PrometheusObserver(MetricsOptions()), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), max_queue_size=1 << 16))
    plugins = Switch(disabled="metrics,traces,log")
    if "prometheus" in names:
        plugins.register(prometheus)
    if "traces" in names:
        plugins.register(TraceObserver(MetricsOptions(), provider))
    with DiffusionEngine(OmniDiffusionConfig(log_level="error"), plugins=plugins) as engine:
        for _ in range(10):
            run(engine, companions)
        wall, cpu = [], []
        for number in range(rounds):
            seconds, busy = {}, {}
            for is_on in (False, True) if number % 2 else (True, False):
                plugins.is_on = is_on
                begun, begun_cpu = time.perf_counter(), time.process_time()
                run(engine, companions)
                seconds[is_on], busy[is_on] = time.perf_counter() - begun, time.process_time() - begun_cpu
            wall.append(seconds[True] / seconds[False])
            cpu.append(busy[True] / busy[False])
        plugins.is_on = True
        what = f"{' and '.join(names) or 'nothing'}, {companions} at a time"
        print(f"{what:38}  with / without: {described(wall)}; CPU of the process {described(cpu)}", flush=True)
    provider.shutdown()


def described(ratios: list[float]) -> str:
    """Return the median of ratios, with its standard error, and their middle half."""
    ordered = sorted(ratios)
    low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    # Of a median: 1.25 times that of a mean; the middle half of what is normal is 1.35 deviations wide.
    error = 1.25 * (high - low) / 1.35 / len(ordered) ** 0.5
    return f"{statistics.median(ordered):.3f} ± {error:.3f} (middle half {low:.2f} to {high:.2f})"


def run(engine: DiffusionEngine, companions: int) -> None:
    """Run requests until the observers have taken note of the end of each: callbacks are called after them."""
    noted = threading.Semaphore(0)
    handles = engine.submit_all([OmniDiffusionRequest(prompt="a red seven", seed=seed) for seed in range(companions)])
    for handle in handles:
        handle.add_done_callback(lambda _: noted.release())
    for handle in handles:
        handle.result(_PATIENCE_S).raise_for_error()
        if not noted.acquire(timeout=_PATIENCE_S):
            raise RuntimeError("an observer does not return")


def elsewhere() -> None:
    """Print what is done at other times than while requests run."""
    prometheus, provider = PrometheusObserver(MetricsOptions()), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=1e6))
    plugins = PluginRegistry(disabled="metrics,traces,log")
    plugins.register(prometheus)
    plugins.register(TraceObserver(MetricsOptions(), provider))
    with DiffusionEngine(OmniDiffusionConfig(log_level="error"), plugins=plugins) as engine:
        run(engine, 8)
        provider.force_flush()
        scrapes, flushes = [], []
        for _ in range(20):
            begun = time.process_time()
            prometheus.text()
            scrapes.append(time.process_time() - begun)
            run(engine, 1)
            begun = time.process_time()
            provider.force_flush()
            flushes.append(time.process_time() - begun)
        print(f"CPU of a scrape: {statistics.median(scrapes) * 1e3:.1f} ms")
        print(f"CPU of sending the spans of one request by itself: {statistics.median(flushes) * 1e3:.1f} ms")
    provider.shutdown()


def hooks() -> None:
    """Print the microseconds that one call of each hook takes."""
    for name, observer in (
        ("prometheus", PrometheusObserver(MetricsOptions())),
        ("traces", TraceObserver(MetricsOptions())),
    ):
        registry = PluginRegistry(disabled="metrics,traces,log")
        registry.register(observer)
        with DiffusionEngine(OmniDiffusionConfig(log_level="error"), plugins=registry) as engine:
            for hook, arguments in hook_arguments(engine.engine_id).items():
                begun = time.perf_counter()
                for _ in range(_CALLS):
                    registry.notify(hook, **arguments)
                print(f"{name:10}  {hook:22}  {(time.perf_counter() - begun) / _CALLS * 1e6:6.1f} us")


def hook_arguments(engine_id: str) -> dict[str, dict[str, Any]]:
    """Return what hooks are called with in the course of a request, by their names."""
    request = OmniDiffusionRequest(prompt="a")
    metrics = RequestMetrics(0.1, 0.1, 0.1, 0.1, num_steps=20)
    output = OmniRequestOutput(request.request_id, 1, "finished", {"images": []}, metrics=metrics)
    about: dict[str, Any] = {"request": request, "request_id": request.request_id, "engine_id": engine_id}
    forwards = [ForwardReport((request.request_id,), 2, 0.01)]
    return {
        "omni_request_queued": about,
        "omni_request_started": {"replica": 0, **about},
        "omni_step_done": {"replica": 0, "seconds": 0.01, "forwards": forwards, "engine_id": engine_id},
        "omni_request_finished": {"output": output, **about},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with collector() as address:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = address
        hooks()
        elsewhere()
        for companions, rounds in ((1, arguments.rounds), (8, max(1, arguments.rounds // 4))):
            for names in ([], ["prometheus"], ["traces"], ["prometheus", "traces"]):
                compare(names, rounds, companions)


if __name__ == "__main__":
    main()
