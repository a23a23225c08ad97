"""Which of the extras are installed, and saying once what to install."""

from __future__ import annotations

import importlib.util
import threading

from omni_core.log import get_logger

log = get_logger(__name__)

PROMETHEUS = "prometheus"
OTEL = "otel"
_NEEDS = {
    PROMETHEUS: ("prometheus_client",),
    OTEL: ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
}

_lock = threading.Lock()
_said: set[str] = set()


def is_installed(extra: str) -> bool:
    """Return whether what an extra brings can be imported. Nothing is imported but the packages above it."""
    return all(map(_is_there, _NEEDS[extra]))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it is not there either
        return False


def warn_of_missing(extra: str, wanted_by: str | None) -> None:
    """Say once what to install, if nothing is or what is missing was asked for.

    Args:
        extra: The one that is missing.
        wanted_by: What asks for it, such as a variable that is set; None if nothing does.
    """
    if not any(map(is_installed, _NEEDS)):
        _warn(
            "omni-metrics observes nothing, since it was installed without an extra: pip install "
            "'omni-metrics[prometheus]' for Prometheus, 'omni-metrics[otel]' for OpenTelemetry, or both with "
            "'omni-metrics[prometheus,otel]'."
        )
    elif wanted_by is not None:
        _warn(f"{wanted_by} has no effect: pip install 'omni-metrics[{extra}]'.")


def _warn(words: str) -> None:
    with _lock:
        if words in _said:
            return
        _said.add(words)
    log.warning(words)
