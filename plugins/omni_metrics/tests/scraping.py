"""Reading metrics: as text, and by a real Prometheus."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

PATIENCE_S = 60.0
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4"), answer.headers["content-type"]
        text: str = answer.read().decode()
    return text


def series(text: str) -> Series:
    """Return the value of each series."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    """Return the sum of the series of this name with at least these labels; there must be one."""
    wanted = set(labels.items())
    found = [number for (one, its), number in series(text).items() if one == name and wanted <= its]
    assert found, f"there is no {name} with {labels}"
    return sum(found)


def families(text: str) -> set[str]:
    """Return the names of the families as Prometheus has them."""
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}


def promtool(*arguments: str, given: str = "", folder: Path | None = None) -> str:
    """Run promtool, and return what it says; it must find nothing wrong."""
    done = subprocess.run(
        ["promtool", *arguments],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        cwd=folder,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


class Prometheus:
    """A server that reads one target several times a second."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the vector that an expression stands for now."""
        given = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{given}", timeout=PATIENCE_S) as answer:
            body = json.load(answer)
        assert body["status"] == "success"
        found: list[dict[str, Any]] = body["data"]["result"]
        return found

    def total(self, expression: str) -> float:
        """Return the sum over all series of an expression; 0 if there is none."""
        return sum(float(one["value"][1]) for one in self.query(expression))


@contextlib.contextmanager
def prometheus(folder: Path, target: str, key: str | None = None) -> Iterator[Prometheus]:
    """Run Debian's Prometheus, which reads `target` (HOST:PORT)."""
    scrape = {"job_name": "omni", "scrape_interval": "200ms", "static_configs": [{"targets": [target]}]}
    if key is not None:
        scrape["authorization"] = {"credentials": key}
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))  # YAML has JSON in it
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--scrape.discovery-reload-interval=100ms",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        made = Prometheus(f"http://127.0.0.1:{port}")
        tick = threading.Event()
        for _ in range(int(PATIENCE_S / 0.05)):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                if made.total("up") == 1:
                    break
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            tick.wait(0.05)
        else:
            raise AssertionError((folder / "prometheus.log").read_text())
        yield made
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
