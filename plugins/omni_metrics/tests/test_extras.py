"""What is not installed, set wrong, taken or gone is said, and stops no picture."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from typing import Any

import pytest
from engines import PATIENCE_S, ask, counted, plugins, traced

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniRequestOutput, hookimpl
from omni_core.errors import ConfigError
from omni_core.testing.warm_python import WarmPython
from omni_metrics.options import MetricsOptions
from omni_metrics.outputs import Made, made_by
from omni_metrics.prometheus.plugin import PrometheusObserver
from omni_metrics.tracing.plugin import TraceObserver

# Lets the packages of these names be missing, as where an extra was not installed.
WITHOUT = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
for _ in range(2):
    with DiffusionEngine(OmniDiffusionConfig()) as engine:
        [output] = engine.step([OmniDiffusionRequest(prompt="a red seven", num_inference_steps=2)])
        print(output.finish_reason, sorted({missing!r} & {{name.split(".")[0] for name in sys.modules}}))
"""


@pytest.mark.parametrize(
    ("missing", "environment", "words"),
    [
        ({"prometheus_client", "opentelemetry"}, {}, "omni-metrics[prometheus,otel]"),
        ({"prometheus_client"}, {}, None),
        ({"opentelemetry"}, {}, None),
        ({"prometheus_client"}, {"OMNI_METRICS_PORT": "0"}, "OMNI_METRICS_PORT has no effect"),
        (
            {"opentelemetry"},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
            "OTEL_EXPORTER_OTLP_ENDPOINT has no effect: pip install 'omni-metrics[otel]'",
        ),
    ],
)
def test_an_extra_that_is_not_installed(
    warm_python: WarmPython, monkeypatch: Any, missing: set[str], environment: dict[str, str], words: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run(
        [*warm_python.command(), "-c", WITHOUT.format(missing=missing)],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert done.stdout.splitlines() == ["finished []"] * 2
    warnings = [line for line in done.stderr.splitlines() if "omni" in line and line.startswith("WARNING")]
    assert len(warnings) == (words is not None), warnings
    assert words is None or words in warnings[0]


def test_discovery_imports_neither_library() -> None:
    code = (
        "import sys; from omni_core.plugins import PluginRegistry; names = [one.name for one in "
        "PluginRegistry().records if one.state == 'active']; print('metrics' in names, 'traces' in names, "
        "[name for name in ('prometheus_client', 'opentelemetry', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stdout.split() == ["True", "True", "[]"], done.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "http"), ("PORT", "70000"), ("FORWARDS", "perhaps"), ("PROMPTS", "2")]
)
def test_an_option_that_is_wrong_stops_the_start(monkeypatch: Any, name: str, value: str) -> None:
    monkeypatch.setenv(f"OMNI_METRICS_{name}", value)
    for observer in (PrometheusObserver(), TraceObserver()):
        with pytest.raises(ConfigError, match=f"OMNI_METRICS_{name} is '{value}'"):
            DiffusionEngine(OmniDiffusionConfig(), plugins=plugins(observer))


def test_options_are_read_from_the_environment(monkeypatch: Any) -> None:
    monkeypatch.setenv("OMNI_METRICS_PORT", "0")
    observer = PrometheusObserver()
    with DiffusionEngine(OmniDiffusionConfig(), plugins=plugins(observer)):
        assert observer.address is not None


def test_a_port_that_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        observer = PrometheusObserver(MetricsOptions(port=taken.getsockname()[1]))
        with DiffusionEngine(OmniDiffusionConfig(), plugins=plugins(observer)) as engine:
            assert observer.address is None
            engine.step([ask()], PATIENCE_S)[0].raise_for_error()
            assert "omni_requests_total" in observer.text()
    [record] = [one for one in caplog.records if "no port was opened" in one.message]
    assert "in use" in record.message


def test_a_start_that_fails_leaves_nothing() -> None:
    class Refusing:
        @hookimpl(trylast=True)
        def omni_configure(self) -> None:
            raise ConfigError("not today")

    observer = PrometheusObserver(MetricsOptions(port=0))
    registry = plugins(Refusing(), observer)
    for _ in range(20):
        with pytest.raises(ConfigError, match="not today"):
            DiffusionEngine(OmniDiffusionConfig(), plugins=registry)
    assert observer.address is None
    assert len(observer._engines) <= 8
    assert "omni_" not in observer.text()


def test_a_collector_that_cannot_be_reached(monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody answers there: requests do not notice, and closing is not held up for long."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with traced(log_level="warning") as engine:
            engine.step([ask()], PATIENCE_S)[0].raise_for_error()
            begun = time.monotonic()
        seconds = time.monotonic() - begun
    assert seconds < 10
    assert "are lost" in caplog.text


def test_nothing_is_sent_unless_a_collector_is_named(monkeypatch: Any) -> None:
    for variables in ({}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}):
        with monkeypatch.context() as patch:
            if variables:
                patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
            for name, value in variables.items():
                patch.setenv(name, value)
            observer = TraceObserver()
            with DiffusionEngine(OmniDiffusionConfig(), plugins=plugins(observer)):
                assert observer._destination is None


def test_the_providers_of_a_program_stay_its_own() -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer = TraceObserver(MetricsOptions(), provider)
    for _ in range(2):
        with DiffusionEngine(OmniDiffusionConfig(), plugins=plugins(observer)) as engine:
            engine.step([ask()], PATIENCE_S)
    names = [span.name for span in exporter.get_finished_spans()]
    assert names == ["queue", "encode", "denoise", "decode", "generate_content omni/digits"] * 2
    provider.shutdown()


@pytest.mark.parametrize(
    ("model", "fields", "kind", "number", "pixels"),
    [
        ("omni/digits", {"num_outputs_per_prompt": 3}, "image", 3, 32 * 32),
        ("omni/digits", {"output_type": "np"}, "image", 1, 32 * 32),
        ("omni/digits", {"output_type": "pt", "num_outputs_per_prompt": 2}, "image", 2, 32 * 32),
        ("video", {"extra_args": {"num_frames": 5, "max_sequence_length": 16}}, "video", 1, 16 * 16),
        ("audio", {}, "audio", 1, 0),
    ],
)
def test_what_was_made(model: str, fields: dict[str, Any], kind: str, number: int, pixels: int) -> None:
    where = {} if model == "omni/digits" else {"model": f"omni_core.testing.pipelines:{model}"}
    if model == "video":
        fields = {**fields, "width": 16, "height": 16}
    with counted(**where) as (engine, observer):
        [output] = engine.step([ask(**{"num_inference_steps": 2, **fields})], PATIENCE_S)
        made = made_by(output.raise_for_error())
        assert (made.kind, made.number, made.pixels) == (kind, number, pixels)
        assert f'omni_outputs_total{{engine="{engine.engine_id}",kind="{kind}"}} {number}.0' in observer.text()


def endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("made", "kind", "number"),
    [
        ({"images": ["text"]}, "image", 1),
        ({"images": "text"}, "image", 4),
        ({"images": []}, "image", 0),
        ({"images": [[]]}, "image", 1),
        ({"images": 3}, "image", 1),
        ({"images": endless()}, "image", 1),
        ({"frames": [[["deep"]]]}, "video", 1),
        ({"images": None, "audios": [1, 2]}, "audio", 2),
        ({}, "other", 1),
        ({"depth": [1]}, "other", 1),
    ],
)
def test_what_no_pipeline_of_diffusers_makes_is_counted_all_the_same(
    made: dict[str, Any], kind: str, number: int
) -> None:
    assert made_by(OmniRequestOutput("a", 1, "finished", made)) == Made(kind, number, 0)  # type: ignore[arg-type]
