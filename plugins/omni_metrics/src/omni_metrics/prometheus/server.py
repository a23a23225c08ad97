"""Families of a server: HTTP requests, clients that went away, jobs."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from omni_metrics.prometheus.buckets import REQUEST_SECONDS


class ServerFamilies:
    """Counts what a server does. There are no series until it tells of something: most engines have no server.

    Args:
        registry: Where the families are.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "omni_http_requests",
            "HTTP requests that were answered, by the template of the route.",
            ["route", "method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "omni_http_request_duration_seconds",
            "From the head of an HTTP request to the last byte of its answer.",
            ["route"],
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self._disconnects = Counter(
            "omni_http_disconnects",
            "Clients that went away before they had their answer.",
            ["route"],
            registry=registry,
        )
        self._jobs = Gauge("omni_jobs", "Jobs that there are now, by state.", ["status"], registry=registry)
        self._changes = Counter(
            "omni_job_changes", "Times that a job came into a state, or was removed.", ["status"], registry=registry
        )

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """An HTTP request was answered."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def disconnect(self, route: str) -> None:
        """A client went away."""
        self._disconnects.labels(route).inc()

    def job_changed(self, job_id: str | None, status: str, jobs: Mapping[str, int]) -> None:
        """A job is in another state."""
        for name, number in jobs.items():
            self._jobs.labels(name).set(number)
        if job_id is not None:
            self._changes.labels(status).inc()
