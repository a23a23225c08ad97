"""Running the suite for an executor from a program: what `omni plugins check` does."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from omni_core.errors import OmniError

Result = Literal["passed", "failed", "not supported"]
NOT_SUPPORTED = "not supported:"

_FILE = """
import json

from omni_core.testing import ExecutorConformance


class TestExecutor(ExecutorConformance):
    executor_class = {executor_class!r}
    executor_options = json.loads({executor_options!r})
    config = json.loads({config!r})
    patience_s = {patience_s!r}
    close_timeout_s = min(ExecutorConformance.close_timeout_s, patience_s)
    test_timeout_s = max(60.0, 2.5 * patience_s)
"""


@dataclass
class Outcome:
    """What became of one test.

    Attributes:
        name: Its name, with its parameters.
        theme: What it is about.
        promise: What it makes sure of, in a sentence.
        result: `"passed"`, `"failed"` or `"not supported"`.
        detail: Why it failed or is not supported.
        seconds: How long it took.
        measurements: What it measured, in seconds.
    """

    name: str
    theme: str
    promise: str
    result: Result = "passed"
    detail: str = ""
    seconds: float = 0.0
    measurements: dict[str, float] = field(default_factory=dict)


def run_suite(
    executor_class: str,
    *,
    executor_options: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    only: str | None = None,
    patience_s: float = 60.0,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run the suite in this process.

    Args:
        executor_class: A registered name or an import path.
        executor_options: Its options.
        config: Further fields of the configuration for every engine.
        only: Run those tests alone whose names match this expression, as pytest's `-k` has it.
        patience_s: Seconds that a result or a call may take.
        on_outcome: Called after each test.

    Returns:
        What became of each test, in the order in which they ran.

    Raises:
        OmniError: pytest could not run the tests; nothing matches `only`, for instance.
    """
    collector = _Collector(on_outcome)
    with tempfile.TemporaryDirectory(prefix="omni-check-") as folder, _undisturbed_pytest():
        # Named like no other, for pytest finds modules that were imported before by their name.
        file = Path(folder) / f"test_{Path(folder).name.replace('-', '_')}.py"
        file.write_text(
            _FILE.format(
                executor_class=executor_class,
                executor_options=json.dumps(dict(executor_options or {})),
                config=json.dumps(dict(config or {})),
                patience_s=patience_s,
            ),
            encoding="utf-8",
        )
        settings = Path(folder) / "pytest.ini"
        settings.write_text("[pytest]\n", encoding="utf-8")
        arguments = [str(file), "-c", str(settings), "--rootdir", folder, "--import-mode=importlib"]
        arguments += ["-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:warnings"]
        code = pytest.main([*arguments, *(["-k", only] if only else [])], plugins=[collector])
    if code == pytest.ExitCode.INTERRUPTED and not collector.problems:
        raise KeyboardInterrupt
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        reason = "\n".join(collector.problems) or (f"no test matches {only!r}" if only else f"pytest ended with {code}")
        raise OmniError(f"The conformance suite could not be run: {reason}")
    return list(collector.outcomes.values())


@contextmanager
def _undisturbed_pytest() -> Iterator[None]:
    """Keep the user's pytest settings and plugins out of it."""
    ours = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Collector:
    """A pytest plugin that notes what becomes of each test."""

    def __init__(self, on_outcome: Callable[[Outcome], None] | None) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.problems: list[str] = []
        self._on_outcome = on_outcome
        self._about: dict[str, tuple[str, str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note the theme and the promise of each test."""
        for item in items:
            function = getattr(item, "function", None)
            promise = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
            self._about[item.nodeid] = (item.name, _theme_of(item), promise)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note what keeps tests from being found."""
        if report.failed:
            self.problems.append(report.longreprtext)

    def pytest_internalerror(self, excrepr: Any) -> None:
        """Note a failure of pytest itself, or of one of its plugins."""
        self.problems.append(str(excrepr))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what became of setting a test up, of itself, and of its clean-up."""
        if report.nodeid not in self.outcomes:
            self.outcomes[report.nodeid] = Outcome(*self._about[report.nodeid])
        outcome = self.outcomes[report.nodeid]
        outcome.seconds += report.duration
        outcome.measurements = {str(what): float(value) for what, value in report.user_properties}  # type: ignore[arg-type]
        if report.skipped and outcome.result == "passed":
            reason = _reason_of(report)
            # A test that is skipped for another reason has shown nothing, so it must not look harmless.
            outcome.result = "not supported" if reason.startswith(NOT_SUPPORTED) else "failed"
            outcome.detail = reason.removeprefix(NOT_SUPPORTED).strip()
        elif report.failed:
            where = "" if report.when == "call" else f"in its {report.when}: "
            outcome.result = "failed"
            outcome.detail = "\n\n".join(filter(None, [outcome.detail, where + report.longreprtext]))
        if report.when == "teardown" and self._on_outcome is not None:
            self._on_outcome(outcome)


def _theme_of(item: pytest.Item) -> str:
    name = getattr(item, "originalname", item.name)
    for cls in getattr(getattr(item, "cls", None), "__mro__", ()):
        if name in vars(cls):
            return str(vars(cls).get("theme", cls.__name__))
    return ""


def _reason_of(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return report.longreprtext
