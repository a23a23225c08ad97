"""A port on loopback where Prometheus reads metrics, for programs that have no server."""

from __future__ import annotations

from prometheus_client import start_http_server
from prometheus_client.registry import Collector

from omni_core.log import get_logger

log = get_logger(__name__)

_HOST = "127.0.0.1"
# Seconds that closing waits for the thread, which looks twice a second whether it is to end.
_JOIN_S = 5.0


class MetricsPort:
    """Serves metrics over HTTP until it is closed.

    Args:
        port: Where to listen; 0 takes one that is free.
        metrics: What to serve.

    Raises:
        OSError: The port cannot be used.

    Attributes:
        address: Its URL.
    """

    def __init__(self, port: int, metrics: Collector) -> None:
        self._server, self._thread = start_http_server(port, _HOST, metrics)
        self._thread.name = "omni-metrics-port"
        self.address = f"http://{_HOST}:{self._server.server_port}/metrics"
        log.info("metrics are served", address=self.address)

    def close(self) -> None:
        """Close the socket and end the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_JOIN_S)
