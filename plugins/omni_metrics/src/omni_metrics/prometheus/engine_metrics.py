"""All families of one engine, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from omni_core import DiffusionEngine, OmniDiffusionConfig
from omni_metrics.options import MetricsOptions
from omni_metrics.prometheus.replicas import ReplicaFamilies
from omni_metrics.prometheus.requests import RequestFamilies
from omni_metrics.prometheus.server import ServerFamilies
from omni_metrics.prometheus.state import StateCollector


class EngineMetrics:
    """The metrics of one engine.

    Args:
        config: Of the engine, which says how many replicas there are.
        options: What users have set.

    Attributes:
        options: The same.
        registry: With all of them.
        requests: What becomes of requests.
        replicas: What replicas and workers do.
        server: What a server of the engine does.
        has_started: Whether the engine is ready, so that its metrics are to be shown.
    """

    def __init__(self, config: OmniDiffusionConfig, options: MetricsOptions) -> None:
        self.options = options
        self.registry = CollectorRegistry()
        self.has_started = False
        self.requests = RequestFamilies(self.registry, config.data_parallel_size)
        self.replicas = ReplicaFamilies(self.registry, config.data_parallel_size)
        self.server = ServerFamilies(self.registry)

    def start(self, engine: DiffusionEngine) -> None:
        """Read the state of an engine at each scrape from now on."""
        self.replicas.start(engine.stats(ask_workers=False).workers)
        self.registry.register(StateCollector(engine))
        self.has_started = True
