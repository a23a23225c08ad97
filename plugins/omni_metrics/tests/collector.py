"""A collector of OpenTelemetry: what exporters send over HTTP is kept as spans."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PATIENCE_S = 30.0


class Collector:
    """Listens on loopback. `spans` has what came, in the order in which it came.

    Attributes:
        url: What OTEL_EXPORTER_OTLP_ENDPOINT is to be.
    """

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            timeout = PATIENCE_S

            def do_POST(self) -> None:
                assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
                request = ExportTraceServiceRequest()
                request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
                collector._take(request)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="collector")

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE_S)

    def _take(self, request: ExportTraceServiceRequest) -> None:
        with self._changed:
            for group in request.resource_spans:
                self.resources.append({one.key: one.value.string_value for one in group.resource.attributes})
                for scope in group.scope_spans:
                    self._spans.extend(scope.spans)
            self._changed.notify_all()

    def forget(self) -> None:
        """Drop what has come."""
        with self._changed:
            self._spans.clear()
            self.resources.clear()

    def traces(self, number: int) -> list[Trace]:
        """Wait for the spans of so many requests, and return them, by request."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._roots()) >= number, PATIENCE_S), "the spans do not come"
            roots = self._roots()
            assert len(roots) == number
            return [Trace(root, self._spans) for root in roots]

    def _roots(self) -> list[Span]:
        """Return the spans of requests: their children have ended, and were sent, before them."""
        return [one for one in self._spans if one.name.startswith("generate_content ")]


class Trace:
    """The spans of one request.

    Attributes:
        root: Of the request.
        children: Those directly below, by their begin.
    """

    def __init__(self, root: Span, spans: list[Span]) -> None:
        self.root = root
        self._spans = [one for one in spans if one.trace_id == root.trace_id]
        self.children = self.below(root)

    def below(self, parent: Span) -> list[Span]:
        found = [one for one in self._spans if one.parent_span_id == parent.span_id]
        return sorted(found, key=lambda one: (one.start_time_unix_nano, one.end_time_unix_nano))

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.children]

    def child(self, name: str) -> Span:
        [found] = [one for one in self.children if one.name == name]
        return found


def attributes_of(span: Any) -> dict[str, Any]:
    """Return the attributes of a span or an event."""
    found: dict[str, Any] = {}
    for one in span.attributes:
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind)
        found[one.key] = [it.string_value for it in value.values] if kind == "array_value" else value
    return found


def seconds_of(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
