"""The metrics of several engines as one text: each series with the id of its engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# Under which Prometheus' clients add the time at which a series was made: series that nobody asks for.
_CREATED = "_created"


class Exposition(Collector):
    """Reads the registries of engines, and adds the label `engine` to what it finds.

    So an engine that is closed leaves nothing behind, and its own families need no label.

    Args:
        registries: Returns that of each engine, by its id. Called at each scrape.
    """

    def __init__(self, registries: Callable[[], Mapping[str, CollectorRegistry]]) -> None:
        self._registries = registries
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterable[Metric]:
        """Return the families, those of the process last."""
        merged: dict[str, Metric] = {}
        for engine_id, registry in self._registries().items():
            for family in registry.collect():
                known = merged.get(family.name)
                if known is None:
                    known = merged[family.name] = Metric(family.name, family.documentation, family.type)
                for sample in family.samples:
                    if not sample.name.endswith(_CREATED):
                        known.add_sample(sample.name, {"engine": engine_id, **sample.labels}, sample.value)
        return [*merged.values(), *self._process.collect()]

    def text(self) -> str:
        """Return it in Prometheus' text format, version 0.0.4."""
        return generate_latest(self).decode()
