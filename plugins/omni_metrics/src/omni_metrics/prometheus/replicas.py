"""Families of replicas and their workers: steps, forward passes, verdicts on stacking, lives and deaths."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from omni_core.outputs import ForwardReport, StackingStats, WorkerStats
from omni_metrics.prometheus.buckets import ROWS, STEP_SECONDS

_VERDICTS = ("verified", "refused", "mismatched")


class ReplicaFamilies:
    """Counts what replicas do. Every method may be called from any thread.

    Args:
        registry: Where the families are.
        num_replicas: How many there are.
    """

    def __init__(self, registry: CollectorRegistry, num_replicas: int) -> None:
        step = Histogram(
            "omni_step_duration_seconds",
            "One call of a replica, of one or several denoiser calls of each request.",
            ["replica"],
            buckets=STEP_SECONDS,
            registry=registry,
        )
        forward = Histogram(
            "omni_forward_duration_seconds",
            "One forward pass of the denoiser.",
            ["replica"],
            buckets=STEP_SECONDS,
            registry=registry,
        )
        rows = Histogram(
            "omni_forward_rows",
            "Rows of a forward pass: of all requests that it served.",
            ["replica"],
            buckets=ROWS,
            registry=registry,
        )
        calls = Counter(
            "omni_denoiser_calls",
            "Denoiser calls of requests; a forward pass serves several.",
            ["replica"],
            registry=registry,
        )
        kinds = Gauge(
            "omni_stacking_kinds",
            "Kinds of denoiser calls by verdict: verified to stack, refused, or found wrong after they had stacked.",
            ["replica", "verdict"],
            registry=registry,
        )
        ready = Gauge("omni_replica_ready", "Whether a replica takes work.", ["replica"], registry=registry)
        names = [str(index) for index in range(num_replicas)]
        # Bound once, so that an event costs one look-up.
        self._steps = [(step.labels(it), forward.labels(it), rows.labels(it), calls.labels(it)) for it in names]
        self._kinds = [[kinds.labels(it, verdict) for verdict in _VERDICTS] for it in names]
        self._ready = [ready.labels(it) for it in names]
        self._told_of: set[int] = set()
        self._worker_families = [
            Counter(f"omni_worker_{name}", f"{what}.", ["replica", "rank"], registry=registry)
            for name, what in (
                ("starts", "Times that a worker process was ready, for the first time or again"),
                ("deaths", "Worker processes that ended without being asked to"),
                ("restarts", "Worker processes that took the place of others"),
            )
        ]
        self._workers: dict[tuple[int, int], list[Counter]] = {}

    def start(self, workers: Sequence[WorkerStats]) -> None:
        """The engine is ready.

        Args:
            workers: Its worker processes; none if it has no such.
        """
        for worker in workers:
            self._worker(worker.replica, worker.rank)  # a count of nothing is 0 and not missing
        for index, gauge in enumerate(self._ready):
            if index not in self._told_of:  # an executor that tells of no states: its replicas are ready as long as it
                gauge.set(1)

    def _worker(self, replica: int, rank: int) -> list[Counter]:
        bound = self._workers.get((replica, rank))
        if bound is None:
            bound = [one.labels(str(replica), str(rank)) for one in self._worker_families]
            self._workers[replica, rank] = bound
        return bound

    def step_done(self, replica: int, seconds: float, forwards: Sequence[ForwardReport]) -> None:
        """A replica has done a step."""
        step, forward_seconds, rows, calls = self._steps[replica]
        step.observe(seconds)
        served = 0
        for forward in forwards:
            forward_seconds.observe(forward.seconds)
            rows.observe(forward.rows)
            served += len(forward.request_ids)
        if served:
            calls.inc(served)

    def stacking_changed(self, replica: int, stacking: StackingStats) -> None:
        """A replica has come to a verdict."""
        verified, refused, mismatched = self._kinds[replica]
        verified.set(stacking.verified)
        refused.set(len(stacking.refused))
        mismatched.set(len(stacking.mismatches))

    def state_changed(self, replica: int, state: str) -> None:
        """A replica is ready, or not any more."""
        self._told_of.add(replica)
        self._ready[replica].set(state == "ready")

    def worker_started(self, replica: int, rank: int) -> None:
        """A worker process is ready."""
        self._worker(replica, rank)[0].inc()

    def worker_died(self, replica: int, rank: int) -> None:
        """A worker process ended without being asked to."""
        self._worker(replica, rank)[1].inc()

    def worker_restarted(self, replica: int, rank: int) -> None:
        """A worker process has taken the place of another."""
        self._worker(replica, rank)[2].inc()
