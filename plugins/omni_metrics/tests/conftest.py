from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from collector import Collector


@pytest.fixture(scope="session", autouse=True)
def _forked(warm_server: object) -> None:
    """The engines of these tests share a fork server."""


@pytest.fixture(autouse=True)
def _no_telemetry_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that OpenTelemetry's environment names."""
    with Collector() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield made
