"""Running the suite for an executor from a program: what `omni plugins check` does."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from omni_core.errors import OmniError
from omni_core.testing.report import NAME, NOT_SUPPORTED, PlainReport, promise_of, theme_of

Result = Literal["kept", "broken", "not supported"]

# What stands before a theme among the keywords of a test, so that no name of a test is taken for one.
_KEYWORD = "theme:"
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
    """What became of one promise.

    Attributes:
        name: The test that looks at it, with its parameters.
        theme: What it is about, in a word.
        promise: What the executor must do, in a sentence.
        result: `"kept"`, `"broken"` or `"not supported"`.
        did: What it did instead, in a sentence; or why it is not supported.
        detail: Where the test failed, as pytest shows it.
        seconds: How long it took.
        measurements: What it measured, in seconds.
    """

    name: str
    theme: str
    promise: str
    result: Result = "kept"
    did: str = ""
    detail: str = ""
    seconds: float = 0.0
    measurements: dict[str, float] = field(default_factory=dict)


def run_suite(
    executor_class: str,
    *,
    executor_options: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    only: str | Sequence[str] = (),
    fail_fast: bool = False,
    patience_s: float = 60.0,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run the suite in this process.

    Args:
        executor_class: A registered name or an import path.
        executor_options: Its options.
        config: Further fields of the configuration for every engine.
        only: Run these tests alone: a theme, or an expression that matches names of tests as pytest's `-k`; or several.
        fail_fast: Whether to stop at the first promise that is broken.
        patience_s: Seconds that a result or a call may take.
        on_outcome: Called after each test.

    Returns:
        What became of each promise, in the order in which they were tried.

    Raises:
        OmniError: pytest could not run the tests; nothing matches `only`, for instance.
    """
    only = [only] if isinstance(only, str) else only
    collector = _Collector(only, on_outcome)
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
        arguments += ["--exitfirst"] if fail_fast else []
        code = pytest.main(arguments, plugins=[collector])
    if code == pytest.ExitCode.INTERRUPTED and not collector.problems:
        raise KeyboardInterrupt
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        wanted = " or ".join(only)
        reasons = {
            pytest.ExitCode.NO_TESTS_COLLECTED: f"no test matches {wanted!r}. Themes: {', '.join(collector.themes)}",
            pytest.ExitCode.USAGE_ERROR: f"{wanted!r} is neither a theme nor an expression as pytest's -k has it.",
        }
        reason = "\n".join(collector.problems) or reasons.get(pytest.ExitCode(code), f"pytest ended with {code}")
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

    def __init__(self, only: Sequence[str], on_outcome: Callable[[Outcome], None] | None) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.problems: list[str] = []
        self.themes: list[str] = []
        self._only = only
        self._on_outcome = on_outcome
        self._about: dict[str, tuple[str, str, str]] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        """Let failures be put into words, beside what pytest says of them."""
        config.pluginmanager.register(PlainReport(plain=False), NAME)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Note the theme and the promise of each test, and select those that are asked for."""
        for item in items:
            theme = theme_of(item)
            item.extra_keyword_matches.add(f"{_KEYWORD}{theme}")
            self._about[item.nodeid] = (item.name, theme, promise_of(item))
        self.themes = list(dict.fromkeys(theme for _, theme, _ in self._about.values()))
        # Only now are the themes known: to import the suite earlier would keep pytest from rewriting its asserts.
        config.option.keyword = " or ".join(
            f"{_KEYWORD}{one.lower()}" if one.lower() in self.themes else f"({one})" for one in self._only
        )

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
        if report.skipped and outcome.result == "kept":
            reason = _reason_of(report)
            # A test that is skipped for another reason has shown nothing, so it must not look harmless.
            outcome.result = "not supported" if reason.startswith(NOT_SUPPORTED) else "broken"
            outcome.did = reason.removeprefix(NOT_SUPPORTED).strip()
        elif report.failed:
            where = "" if report.when == "call" else f"in its {report.when}: "
            outcome.did = outcome.did if outcome.result == "broken" else where + getattr(report, "did", "")
            outcome.result = "broken"
            outcome.detail = "\n\n".join(filter(None, [outcome.detail, where + report.longreprtext]))
        if report.when == "teardown" and self._on_outcome is not None:
            self._on_outcome(outcome)


def _reason_of(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return report.longreprtext
