"""The plugin `metrics`: counts what engines tell observers, and shows it to Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniRequestOutput, hookimpl
from omni_core.errors import OmniError
from omni_core.log import get_logger
from omni_core.outputs import ForwardReport, StackingStats
from omni_metrics.extras import PROMETHEUS, is_installed, warn_of_missing
from omni_metrics.options import MetricsOptions, read_options

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from omni_metrics.prometheus.engine_metrics import EngineMetrics
    from omni_metrics.prometheus.port import MetricsPort

log = get_logger(__name__)

# Engines that were configured and are not ready: a start that fails is told to nobody.
_MOST_STARTING = 8


class PrometheusObserver:
    """Counts what happens to engines of this process. One instance serves all; each engine has families of its own.

    Args:
        options: What to do; None reads the environment when an engine is made.
    """

    def __init__(self, options: MetricsOptions | None = None) -> None:
        self._options = options
        self._lock = threading.Lock()
        # Never changed, but replaced under the lock, so that a hook or a scrape can read it without.
        self._engines: dict[str, EngineMetrics] = {}
        self._port: MetricsPort | None = None

    @property
    def address(self) -> str | None:
        """Where Prometheus can read all engines of the process; None while no port is open."""
        port = self._port
        return None if port is None else port.address

    def text(self, engine_id: str | None = None) -> str:
        """Return the metrics in Prometheus' text format, version 0.0.4.

        Args:
            engine_id: Of this engine alone; None for all that are open.
        """
        from omni_metrics.prometheus.exposition import Exposition

        return Exposition(lambda: self._registries(engine_id)).text()

    # What follows is called in the engine's threads: each notes one thing and returns.

    @hookimpl
    def omni_configure(self, config: OmniDiffusionConfig, engine_id: str) -> None:
        """Be there before the workers start, so that their starts are counted."""
        options = self._options or read_options()
        if not is_installed(PROMETHEUS):
            warn_of_missing(PROMETHEUS, None if options.port is None else "OMNI_METRICS_PORT")
            return
        from omni_metrics.prometheus.engine_metrics import EngineMetrics

        made = EngineMetrics(config, options)
        with self._lock:
            starting = [one for one, metrics in self._engines.items() if not metrics.has_started]
            given_up = set(starting[: max(0, len(starting) - _MOST_STARTING + 1)])
            kept = {one: metrics for one, metrics in self._engines.items() if one not in given_up}
            self._engines = {**kept, engine_id: made}

    @hookimpl
    def omni_engine_started(self, engine: DiffusionEngine, engine_id: str) -> None:
        """Show the engine's metrics from now on."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.start(engine)
            if metrics.options.port is not None:
                self._open_port(metrics.options.port)

    @hookimpl
    def omni_engine_closed(self, engine_id: str) -> None:
        """Forget the engine, and close the port when there is none any more."""
        port = None
        with self._lock:
            self._engines = {one: metrics for one, metrics in self._engines.items() if one != engine_id}
            if not any(metrics.has_started for metrics in self._engines.values()):
                port, self._port = self._port, None
        if port is not None:
            port.close()

    @hookimpl
    def omni_metrics(self, engine_id: str) -> str | None:
        """Give the text of `/metrics`."""
        return self.text(engine_id) if engine_id in self._engines else None

    @hookimpl
    def omni_request_queued(self, engine_id: str) -> None:
        """Count a request that was accepted."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.requests.accepted()

    @hookimpl
    def omni_request_refused(self, error: OmniError, engine_id: str) -> None:
        """Count a request that was not."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.requests.refused(error)

    @hookimpl
    def omni_request_retried(self, replica: int, engine_id: str) -> None:
        """Count a request that is run again."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.requests.retried(replica)

    @hookimpl
    def omni_request_finished(self, output: OmniRequestOutput, engine_id: str) -> None:
        """Count a request that finished or was aborted."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.requests.ended(output)

    @hookimpl
    def omni_request_failed(self, output: OmniRequestOutput, engine_id: str) -> None:
        """Count a request that failed or ran out of its time."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.requests.ended(output)

    @hookimpl
    def omni_output_suspect(self, engine_id: str) -> None:
        """Count an output that may be wrong."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.requests.suspect()

    @hookimpl
    def omni_step_done(self, replica: int, seconds: float, forwards: Sequence[ForwardReport], engine_id: str) -> None:
        """Count a step and its forward passes."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.replicas.step_done(replica, seconds, forwards)

    @hookimpl
    def omni_stacking_changed(self, replica: int, stacking: StackingStats, engine_id: str) -> None:
        """Note what stacking has come to."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.replicas.stacking_changed(replica, stacking)

    @hookimpl
    def omni_worker_started(self, replica: int, rank: int, engine_id: str) -> None:
        """Count a worker that is ready."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.replicas.worker_started(replica, rank)

    @hookimpl
    def omni_worker_died(self, replica: int, rank: int, engine_id: str) -> None:
        """Count a worker that was lost."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.replicas.worker_died(replica, rank)

    @hookimpl
    def omni_worker_restarted(self, replica: int, rank: int, engine_id: str) -> None:
        """Count a worker that took the place of another."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.replicas.worker_restarted(replica, rank)

    @hookimpl
    def omni_replica_state(self, replica: int, state: str, engine_id: str) -> None:
        """Note whether a replica is ready."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.replicas.state_changed(replica, state)

    @hookimpl
    def omni_http_request(self, route: str, method: str, status: int, seconds: float, engine_id: str) -> None:
        """Count an HTTP request."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.server.request(route, method, status, seconds)

    @hookimpl
    def omni_http_disconnect(self, route: str, engine_id: str) -> None:
        """Count a client that went away."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.server.disconnect(route)

    @hookimpl
    def omni_job_changed(self, job_id: str | None, status: str, jobs: Mapping[str, int], engine_id: str) -> None:
        """Count the change of a job, and note how many there are."""
        if (metrics := self._engines.get(engine_id)) is not None:
            metrics.server.job_changed(job_id, status, jobs)

    def _open_port(self, number: int) -> None:
        """Open the port, unless another engine has. One that is taken is no reason not to make pictures."""
        from omni_metrics.prometheus.exposition import Exposition
        from omni_metrics.prometheus.port import MetricsPort

        with self._lock:
            if self._port is not None:
                return
            try:
                self._port = MetricsPort(number, Exposition(self._registries))
            except OSError as error:
                log.warning(
                    "no port was opened for metrics: choose another with OMNI_METRICS_PORT",
                    port=number,
                    reason=error.strerror or str(error),
                )

    def _registries(self, engine_id: str | None = None) -> dict[str, CollectorRegistry]:
        return {
            one: metrics.registry
            for one, metrics in self._engines.items()
            if metrics.has_started and engine_id in (None, one)
        }


plugin = PrometheusObserver()
