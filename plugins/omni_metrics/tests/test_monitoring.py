"""The alerts, the dashboard and the page of metrics: what they name is there, and what is there is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from engines import FAULTY, PATIENCE_S, ask
from scraping import families, needs_promtool, promtool, series
from served import served

from omni_metrics.options import MetricsOptions
from omni_metrics.prometheus.plugin import PrometheusObserver
from omni_metrics.tracing.attributes import request_attributes

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "monitoring"
PAGE = ROOT / "docs" / "METRICS.md"
# What Prometheus makes itself, and what its own client tells of the process.
OF_PROMETHEUS = {"up"}
VARIABLES = {
    "$__rate_interval": "5m",
    "$__range": "6h",
    "$instance": ".*",
    "$engine": ".*",
}


@pytest.fixture(scope="module")
def text() -> str:
    """The metrics of a server with worker processes, after a request, a job and an HTTP error."""
    observer = PrometheusObserver(MetricsOptions())
    with served(observer, executor_class="multiproc", model=FAULTY) as (url, server):
        server.service.engine.engine.step([ask()], PATIENCE_S)
        with httpx2.Client(base_url=url, timeout=PATIENCE_S) as client:
            client.get("live")
            return client.get("metrics").text


def alerts() -> list[dict[str, Any]]:
    content = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    board = json.loads((FOLDER / "dashboard.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """Return each expression of the alerts and of the dashboard, by where it stands."""
    found = {rule["alert"]: rule["expr"] for rule in alerts()}
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found[f"{panel['title']} {target['refId']}"] = expression
    return found


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:omni|process)_\w+|\bup\b", re.sub(r'"[^"]*"', "", expression)))


def test_each_expression_names_what_is_there(text: str) -> None:
    there = families(text)
    histograms = {line.split()[2] for line in text.splitlines() if re.match(r"# TYPE \w+ histogram", line)}
    there |= {f"{name}_{suffix}" for name in histograms for suffix in ("bucket", "sum", "count")} | OF_PROMETHEUS
    missing = {where: names_in(it) - there for where, it in expressions().items() if names_in(it) - there}
    assert missing == {}
    assert len(expressions()) > 40
    assert all(names_in(expression) for expression in expressions().values())


def test_each_label_in_an_expression_is_one_of_its_family(text: str) -> None:
    labels: dict[str, set[str]] = {}
    for name, its in series(text):
        labels.setdefault(name, set()).update(dict(its))
    # Of families that have no series before something goes wrong, and what Prometheus adds.
    labels["omni_jobs"] = {"engine", "status"}
    labels["omni_job_changes_total"] = labels["omni_jobs"]
    labels["omni_http_disconnects_total"] = {"engine", "route"}
    for where, expression in expressions().items():
        for name, selected in re.findall(r"\b((?:omni|process)_\w+)\{([^}]*)\}", expression):
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selected)) - {"job", "instance"}
            assert used <= labels[name], (where, name, used)


@needs_promtool
def test_promtool_takes_the_rules_and_the_configuration() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", "alerts.yml", folder=FOLDER)
    promtool("check", "config", "prometheus.yml", folder=FOLDER)


@needs_promtool
def test_each_alert_is_raised_by_what_it_is_for() -> None:
    promtool("test", "rules", "alerts_test.yml", folder=FOLDER)
    content = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())
    raised = {case["alertname"] for test in content["tests"] for case in test["alert_rule_test"] if case["exp_alerts"]}
    quiet = {
        case["alertname"] for test in content["tests"] for case in test["alert_rule_test"] if not case["exp_alerts"]
    }
    assert raised == quiet == {rule["alert"] for rule in alerts()}


@needs_promtool
def test_prometheus_understands_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel_{number}", "expr": expression} for number, expression in enumerate(expressions().values())
    ]
    content = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(content))
    promtool("check", "rules", "rules.yml", folder=tmp_path)


def test_the_dashboard_has_no_two_panels_in_one_place() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    identifiers = [panel["id"] for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]]
    assert len(identifiers) == len(set(identifiers))


def test_the_page_has_a_line_for_each_family(text: str) -> None:
    rows = re.findall(r"^\| `((?:omni|process)_\w+)` \| (\w+) \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == len({name for name, _, _ in rows}), "one is there twice"
    shown = {name: kind for name, kind, _ in rows if name.startswith("omni_")}
    kinds = dict(re.findall(r"^# TYPE (omni_\w+) (\w+)$", text, re.MULTILINE))
    assert shown == kinds
    labels: dict[str, set[str]] = {}
    for name, its in series(text):
        family = re.sub(r"_(bucket|sum|count)$", "", name) if kinds.get(name) is None else name
        labels.setdefault(family, set()).update(set(dict(its)) - {"engine", "le"})
    for name, _, its in rows:
        if labels.get(name) is not None and name.startswith("omni_"):
            assert set(re.findall(r"`(\w+)`", its)) == labels[name], name


def test_the_page_has_each_attribute_of_a_span() -> None:
    from omni_core import OmniRequestOutput
    from omni_core.errors import PipelineError

    request = ask(prompt="a", negative_prompt="b")
    output = OmniRequestOutput.failed(request, PipelineError("it went wrong"))
    output.metrics.suspect = "perhaps"
    page = PAGE.read_text()
    for name in request_attributes(request, output, "m", prompts=True):
        assert f"`{name}`" in page, name


def test_the_page_for_operators_names_each_alert() -> None:
    page = (ROOT / "docs" / "OPERATIONS.md").read_text()
    assert [rule["alert"] for rule in alerts() if f"`{rule['alert']}`" not in page] == []
