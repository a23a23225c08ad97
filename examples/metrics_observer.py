"""An observer that counts requests, steps and worker deaths, and serves the counts to Prometheus.

    python examples/metrics_observer.py FOLDER

It needs `pip install prometheus-client`. The observer is given to the engine in code, without packaging: it shows how
one is written. The one to install is `omni-metrics`, which counts much more. The example runs requests that end in
every way there is, reads its own /metrics as Prometheus would, and saves what it read.
"""

from __future__ import annotations

import argparse
import contextlib
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

from omni_core import DiffusionEngine, OmniDiffusionRequest, OmniRequestOutput, PluginRegistry, hookimpl
from omni_core.errors import OmniError, RequestTimeoutError


class MetricsObserver:
    """Turns what the engine tells observers into metrics.

    Attributes:
        registry: Where the metrics are: one for each observer, so that engines do not share counts.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._queued = Counter("omni_requests_queued", "Requests that were accepted", registry=registry)
        self._started = Counter("omni_requests_started", "Requests that a worker began", registry=registry)
        self._ended = Counter("omni_requests_ended", "Requests that ended, by how", ["how"], registry=registry)
        self._seconds = Histogram("omni_request_seconds", "From queued to the end", ["how"], registry=registry)
        self._steps = Counter("omni_denoising_steps", "Denoising steps done", registry=registry)
        self._deaths = Counter("omni_worker_deaths", "Workers that died", ["replica", "rank"], registry=registry)
        self._restarts = Counter("omni_worker_restarts", "Workers replaced", ["replica", "rank"], registry=registry)
        self._queued_at: dict[str, float] = {}
        self._step_of: dict[str, int] = {}
        for how in ("finished", "aborted", "failed", "timeout"):
            self._ended.labels(how)  # a count of nothing is 0, not missing

    @hookimpl
    def omni_request_queued(self, request: OmniDiffusionRequest) -> None:
        """Count a request, and note the time."""
        self._queued.inc()
        self._queued_at[request.request_id] = time.monotonic()

    @hookimpl
    def omni_request_started(self) -> None:
        """Count the start; a hook takes only those of its arguments that it needs."""
        self._started.inc()

    @hookimpl
    def omni_request_step(self, request_id: str, step: int) -> None:
        """Count the steps since the last call: one call may report several."""
        before = self._step_of.get(request_id, 0)
        # Smaller than before: its worker died, and the request began again.
        self._steps.inc(step - before if step >= before else step)
        self._step_of[request_id] = step

    @hookimpl
    def omni_request_finished(self, output: OmniRequestOutput) -> None:
        """Count the end: this hook is told of finished and of aborted requests."""
        self._end(output.request_id, output.finish_reason)

    @hookimpl
    def omni_request_failed(self, request_id: str, error: OmniError) -> None:
        """Count the end: this hook is told of errors and of requests that ran out of their time."""
        self._end(request_id, "timeout" if isinstance(error, RequestTimeoutError) else "failed")

    @hookimpl
    def omni_worker_died(self, replica: int, rank: int) -> None:
        """Count the loss of a worker."""
        self._deaths.labels(replica, rank).inc()

    @hookimpl
    def omni_worker_restarted(self, replica: int, rank: int) -> None:
        """Count its replacement."""
        self._restarts.labels(replica, rank).inc()

    def _end(self, request_id: str, how: str) -> None:
        self._step_of.pop(request_id, None)
        self._ended.labels(how).inc()
        self._seconds.labels(how).observe(time.monotonic() - self._queued_at.pop(request_id))


@contextlib.contextmanager
def metrics_server(observer: MetricsObserver, port: int = 0) -> Iterator[str]:
    """Serve the metrics on this machine alone; port 0 lets the system choose one. Yields the address."""
    server, thread = start_http_server(port, addr="127.0.0.1", registry=observer.registry)
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10.0)


def run_requests(engine: DiffusionEngine) -> None:
    """Let three requests finish, one fail, one run out of its time, and abort one."""
    drawn = [OmniDiffusionRequest(prompt=prompt) for prompt in ("a red seven", "a blue two", "a green four")]
    too_large = OmniDiffusionRequest(prompt="a large nine", height=2048)
    too_slow = OmniDiffusionRequest(prompt="a slow six", num_inference_steps=5000, timeout_s=1.0)
    unwanted = OmniDiffusionRequest(prompt="an unwanted one", num_inference_steps=5000)
    handles = engine.submit_all([*drawn, too_large, too_slow, unwanted])
    for event in handles[-1].events(timeout=60.0):
        if event.kind == "step":
            handles[-1].abort()
    for handle in handles:
        print(f"{handle.request.prompt}: {handle.result(60.0).finish_reason}")


def main() -> None:
    """Run the requests, scrape the metrics and save them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where metrics.txt goes")
    parser.add_argument("--port", type=int, default=0, help="port to serve on; 0: any that is free")
    arguments = parser.parse_args()
    observer = MetricsObserver()
    plugins = PluginRegistry()  # what is installed, and
    plugins.register(observer)
    with metrics_server(observer, arguments.port) as address:
        with DiffusionEngine(plugins=plugins) as engine:
            run_requests(engine)
        # Callers hear of the end before observers do; after close() both have.
        with urllib.request.urlopen(address, timeout=10.0) as reply:
            text = reply.read().decode()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "metrics.txt").write_text(text, encoding="utf-8")
    print(f"read from {address}:")
    print("\n".join(line for line in text.splitlines() if line.startswith("omni_") and "_total" in line))


if __name__ == "__main__":
    main()
