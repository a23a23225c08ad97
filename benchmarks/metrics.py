"""What the observers of omni-metrics cost: engines with and without them, side by side.

    pip install './plugins/omni_metrics[prometheus,otel]'
    python benchmarks/metrics.py [--rounds 200]

Two engines with the small model are in one process, and take turns at the same request, so that noise of the machine
hits both. One has no observers. The other counts for Prometheus, is scraped once a second, and sends spans to a
collector in a process of its own, which drops them. The ratio is that of each pair of turns, of the seconds and
of the CPU time of the process, exporting and scraping included. Pairs without any observer show how exact that is.

Besides, what one call of each hook costs, without an engine.
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
import urllib.request
from collections.abc import Iterator
from typing import Any

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, OmniRequestOutput, PluginRegistry
from omni_core.outputs import ForwardReport, RequestMetrics

_PATIENCE_S = 60.0
_SCRAPE_EVERY_S = 1.0
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


@contextlib.contextmanager
def scraped(address: str) -> Iterator[None]:
    """Read metrics as Prometheus does, but more often."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(_SCRAPE_EVERY_S):
            with urllib.request.urlopen(address, timeout=_PATIENCE_S) as answer:
                answer.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_PATIENCE_S)


def compare(names: list[str], rounds: int, companions: int) -> None:
    """Print what requests take with some of the observers against without."""
    from omni_metrics.options import MetricsOptions
    from omni_metrics.prometheus.plugin import PrometheusObserver
    from omni_metrics.tracing.plugin import TraceObserver

    prometheus = PrometheusObserver(MetricsOptions(port=0))
    plain, observed = (PluginRegistry(disabled="metrics,traces,log") for _ in range(2))
    if "prometheus" in names:
        observed.register(prometheus)
    if "traces" in names:
        observed.register(TraceObserver(MetricsOptions()))
    config = OmniDiffusionConfig(log_level="error")
    with contextlib.ExitStack() as ends:
        without = ends.enter_context(DiffusionEngine(config, plugins=plain))
        having = ends.enter_context(DiffusionEngine(config, plugins=observed))
        if prometheus.address is not None:
            ends.enter_context(scraped(prometheus.address))
        for engine in (without, having) * 5:
            run(engine, companions)
        wall, cpu = [], []
        for number in range(rounds):
            seconds, busy = {}, {}
            for engine in (without, having) if number % 2 else (having, without):
                begun, begun_cpu = time.perf_counter(), time.process_time()
                run(engine, companions)
                seconds[engine], busy[engine] = time.perf_counter() - begun, time.process_time() - begun_cpu
            wall.append(seconds[having] / seconds[without])
            cpu.append(busy[having] / busy[without])
    what = f"{' and '.join(names) or 'nothing'}, {companions} at a time"
    print(f"{what:38}  with / without: {described(wall)}; CPU of the process {described(cpu)}", flush=True)


def described(ratios: list[float]) -> str:
    """Return the median of ratios, with its standard error, and their middle half."""
    ordered = sorted(ratios)
    low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    # Of a median: 1.25 times that of a mean; the middle half of what is normal is 1.35 deviations wide.
    error = 1.25 * (high - low) / 1.35 / len(ordered) ** 0.5
    return f"{statistics.median(ordered):.3f} ± {error:.3f} (middle half {low:.2f} to {high:.2f})"


def run(engine: DiffusionEngine, companions: int) -> None:
    requests = [OmniDiffusionRequest(prompt="a red seven", seed=seed) for seed in range(companions)]
    for output in engine.step(requests, _PATIENCE_S):
        output.raise_for_error()


def hooks() -> None:
    """Print the microseconds that one call of each hook takes."""
    from omni_metrics.options import MetricsOptions
    from omni_metrics.prometheus.plugin import PrometheusObserver
    from omni_metrics.tracing.plugin import TraceObserver

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
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with collector() as address:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = address
        hooks()
        for companions, rounds in ((1, arguments.rounds), (8, max(1, arguments.rounds // 4))):
            for names in ([], ["prometheus"], ["traces"], ["prometheus", "traces"]):
                compare(names, rounds, companions)


if __name__ == "__main__":
    main()
