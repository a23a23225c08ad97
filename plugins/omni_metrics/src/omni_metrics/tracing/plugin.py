"""The plugin `traces`: sends spans of each request to OpenTelemetry."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omni_core import DiffusionEngine, OmniDiffusionRequest, OmniRequestOutput, hookimpl
from omni_core.outputs import ForwardReport
from omni_metrics.extras import OTEL, is_installed, warn_of_missing
from omni_metrics.model_name import model_name
from omni_metrics.options import COLLECTOR_VARIABLES, MetricsOptions, read_options

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from omni_metrics.tracing.engine_traces import EngineTraces
    from omni_metrics.tracing.provider import SpanDestination


class TraceObserver:
    """Makes spans of the requests of the engines of this process. One instance serves all.

    Args:
        options: What to do; None reads the environment when an engine is made.
        provider: Where spans go, and stays the caller's to close. None: to the provider that the program has set, or
            else to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names; and nowhere if there is neither.
    """

    def __init__(self, options: MetricsOptions | None = None, provider: TracerProvider | None = None) -> None:
        self._options = options
        self._provider = provider
        self._lock = threading.Lock()
        # Never changed, but replaced under the lock.
        self._engines: dict[str, EngineTraces] = {}
        self._destination: SpanDestination | None = None

    # What follows is called in the engine's threads.

    @hookimpl
    def omni_configure(self) -> None:
        """Say before anything starts what is set wrong, or lacks."""
        if self._options is None:
            read_options()
        if not is_installed(OTEL):
            warn_of_missing(OTEL, next(filter(os.environ.get, COLLECTOR_VARIABLES), None))

    @hookimpl
    def omni_engine_started(self, engine: DiffusionEngine, engine_id: str) -> None:
        """Trace the engine from now on, if spans have somewhere to go."""
        if not is_installed(OTEL):
            return
        from omni_metrics.tracing.engine_traces import EngineTraces
        from omni_metrics.tracing.provider import SpanDestination, is_wanted
        from omni_metrics.tracing.spans import RequestSpans

        if self._provider is None and not is_wanted():
            return
        options = self._options or read_options()
        with self._lock:
            if self._destination is None:
                self._destination = SpanDestination(self._provider)
            spans = RequestSpans(self._destination.tracer, model_name(engine), options)
            self._engines = {**self._engines, engine_id: EngineTraces(spans, forwards=options.forwards)}

    @hookimpl
    def omni_engine_closed(self, engine_id: str) -> None:
        """Forget the engine; after the last one, send what is left."""
        destination = None
        with self._lock:
            self._engines = {one: traces for one, traces in self._engines.items() if one != engine_id}
            if not self._engines:
                destination, self._destination = self._destination, None
        if destination is not None:
            destination.close()

    @hookimpl
    def omni_request_started(self, request_id: str, replica: int, engine_id: str) -> None:
        """Note when a worker began."""
        if (traces := self._engines.get(engine_id)) is not None:
            traces.begun(request_id, replica)

    @hookimpl
    def omni_request_retried(
        self, request_id: str, replica: int, reason: str, num_retries: int, engine_id: str
    ) -> None:
        """Note that a run was lost, and why."""
        if (traces := self._engines.get(engine_id)) is not None:
            traces.retried(request_id, replica, reason, num_retries)

    @hookimpl
    def omni_step_done(self, replica: int, forwards: Sequence[ForwardReport], engine_id: str) -> None:
        """Note the forward passes, if they are wanted."""
        if (traces := self._engines.get(engine_id)) is not None:
            traces.step_done(replica, forwards)

    @hookimpl
    def omni_request_finished(self, request: OmniDiffusionRequest, output: OmniRequestOutput, engine_id: str) -> None:
        """Make the spans of a request that finished or was aborted."""
        if (traces := self._engines.get(engine_id)) is not None:
            traces.ended(request, output)

    @hookimpl
    def omni_request_failed(self, request: OmniDiffusionRequest, output: OmniRequestOutput, engine_id: str) -> None:
        """Make the spans of a request that failed or ran out of its time."""
        if (traces := self._engines.get(engine_id)) is not None:
            traces.ended(request, output)


plugin = TraceObserver()
