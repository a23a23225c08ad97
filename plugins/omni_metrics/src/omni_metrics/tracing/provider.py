"""Where spans go: the program's own provider, or one that is made from OpenTelemetry's environment variables."""

from __future__ import annotations

import os
import threading

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

from omni_core import __version__
from omni_core.log import get_logger
from omni_metrics.options import COLLECTOR_VARIABLES

log = get_logger(__name__)

# Seconds that the end of the last engine waits for spans to be sent: a collector that hangs holds nobody up.
_FLUSH_S = 5.0
_SERVICE = "omni"


class SpanDestination:
    """A provider of tracers, and its end if it was made here.

    Args:
        provider: The caller's, which stays its to close. None: the one that the program has set, or one for the
            collector that OTEL_EXPORTER_OTLP_ENDPOINT names.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._own: TracerProvider | None = None
        if provider is None:
            found = trace.get_tracer_provider()
            provider = found if isinstance(found, TracerProvider) else self._make()
        self.tracer: Tracer = provider.get_tracer("omni_metrics", __version__)

    def _make(self) -> TracerProvider:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
        resource = Resource.create({SERVICE_NAME: _SERVICE}).merge(OTELResourceDetector().detect())
        self._own = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._own.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return self._own

    def close(self) -> None:
        """Send what is left and end the provider, if it was made here."""
        if self._own is None:
            return
        thread = threading.Thread(target=self._own.shutdown, name="omni-metrics-flush", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends, and starts no more threads
            self._own.shutdown()
            return
        thread.join(_FLUSH_S)
        if thread.is_alive():
            log.warning("spans could not be sent in time, and are lost", seconds=_FLUSH_S)


def is_wanted() -> bool:
    """Return whether spans have somewhere to go: a collector is named, or the program has a provider of its own."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return True
    names_collector = any(map(os.environ.get, COLLECTOR_VARIABLES))
    return names_collector and os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "otlp"
