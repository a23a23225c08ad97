"""Engines with the observers of this package, and requests that end in every way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, PluginRegistry
from omni_metrics.options import MetricsOptions
from omni_metrics.prometheus.plugin import PrometheusObserver
from omni_metrics.tracing.plugin import TraceObserver

# With faults that a request brings along.
FAULTY = "omni_core.testing.pipelines:faulty"
PATIENCE_S = 60.0


def plugins(*observers: Any) -> PluginRegistry:
    """Return what is installed, with these observers in place of those of the environment."""
    registry = PluginRegistry(disabled="metrics,traces,log")
    for number, one in enumerate(observers):
        registry.register(one, f"observer-{number}")
    return registry


@contextlib.contextmanager
def counted(*others: Any, **fields: Any) -> Iterator[tuple[DiffusionEngine, PrometheusObserver]]:
    """Make an engine whose metrics are on a port, and which others observe besides."""
    observer = PrometheusObserver(MetricsOptions(port=0))
    config = OmniDiffusionConfig(**{"log_level": "error", **fields})
    with DiffusionEngine(config, plugins=plugins(observer, *others)) as engine:
        yield engine, observer


@contextlib.contextmanager
def traced(options: MetricsOptions | None = None, **fields: Any) -> Iterator[DiffusionEngine]:
    """Make an engine whose spans go where the environment says."""
    config = OmniDiffusionConfig(**{"log_level": "error", **fields})
    with DiffusionEngine(config, plugins=plugins(TraceObserver(options))) as engine:
        yield engine


def ask(seed: int = 1, **fields: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(**{"prompt": "a", "seed": seed, "num_inference_steps": 6, **fields})
