"""What is read at a scrape: requests and workers as they are now. No worker is asked, and nothing is waited for."""

from __future__ import annotations

import platform
import weakref
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from omni_core import DiffusionEngine, __version__
from omni_core.errors import OmniError
from omni_core.outputs import EngineStats, WorkerStats
from omni_metrics.model_name import model_name


class StateCollector(Collector):
    """Reads an engine. It keeps no engine alive: one that nobody refers to any more is closed.

    Args:
        engine: Which.
    """

    def __init__(self, engine: DiffusionEngine) -> None:
        self._engine = weakref.ref(engine)
        info = engine.pipeline_info
        self._about = {
            "version": __version__,
            "python": platform.python_version(),
            "executor": engine.executor.name,
            "model": model_name(engine),
            "pipeline": info.class_name if info is not None else "",
        }

    def collect(self) -> Iterable[Metric]:
        """Yield the families; none once the engine is closed."""
        engine = self._engine()
        if engine is None:
            return
        try:
            stats = engine.stats(ask_workers=False)
        except OmniError:  # it was closed, or has stopped by a fault of its own: `up` of the program is another matter
            return
        yield from _requests(stats)
        yield _one("omni_sleep_level", "How deep the workers sleep; 0 is awake.", engine.sleep_level)
        yield from _workers(stats.workers)
        info = GaugeMetricFamily("omni_engine_info", "What runs; always 1.", labels=list(self._about))
        info.add_metric(list(self._about.values()), 1)
        yield info


def _requests(stats: EngineStats) -> Iterable[Metric]:
    yield _one("omni_requests_waiting", "Requests that no replica has taken up.", stats.waiting)
    yield _one("omni_requests_running", "Requests that a replica works on.", stats.running)
    yield _one("omni_requests_parked", "Requests that gave their place to one of higher priority.", stats.parked)


def _one(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def _workers(workers: list[WorkerStats]) -> Iterable[Metric]:
    if not workers:
        return
    labels = ["replica", "rank"]
    up = GaugeMetricFamily("omni_worker_up", "Whether a worker process has loaded the pipeline.", labels=labels)
    memory = GaugeMetricFamily("omni_worker_memory_bytes", "Resident memory of a worker process.", labels=labels)
    uptime = GaugeMetricFamily("omni_worker_uptime_seconds", "Since a worker process was ready.", labels=labels)
    heard = GaugeMetricFamily(
        "omni_worker_heartbeat_age_seconds", "Since a worker process was last heard of.", labels=labels
    )
    for worker in workers:
        place = [str(worker.replica), str(worker.rank)]
        up.add_metric(place, worker.state in ("idle", "busy"))
        if worker.pid is None:
            continue
        memory.add_metric(place, worker.memory_bytes)
        uptime.add_metric(place, worker.uptime_s)
        if worker.last_heartbeat_s is not None:
            heard.add_metric(place, worker.last_heartbeat_s)
    yield from (up, memory, uptime, heard)
