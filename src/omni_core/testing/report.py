"""The report of the suite: for each promise that an executor breaks, what it must do and what it did.

A plugin of pytest that the suite itself registers when its first test begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from omni_core.testing.sentences import comparison, what_it_did

NAME = "omni-conformance"
NOT_SUPPORTED = "not supported:"


def theme_of(item: pytest.Item) -> str:
    """Return the theme of a test of the suite; the empty string for any other test."""
    name = getattr(item, "originalname", item.name)
    for cls in getattr(getattr(item, "cls", None), "__mro__", ()):
        if name in vars(cls):
            return str(vars(cls).get("theme", ""))
    return ""


def promise_of(item: pytest.Item) -> str:
    """Return what a test makes sure of, in a sentence."""
    doc = inspect.getdoc(getattr(item, "function", None)) or item.name
    return doc.partition("\n\n")[0].replace("\n", " ")


def report_plainly(config: pytest.Config) -> None:
    """Let pytest report the suite's tests in sentences, unless its user has asked for more."""
    if not config.pluginmanager.has_plugin(NAME):
        is_plain = config.get_verbosity() <= 0 and config.getoption("tbstyle") == "auto"
        config.pluginmanager.register(PlainReport(is_plain), NAME)


class BrokenPromise:
    """A failure as pytest prints it: two sentences instead of a traceback."""

    def __init__(self, promise: str, did: str) -> None:
        self.promise = promise
        self.did = did

    def __str__(self) -> str:
        return f"It must: {self.promise}\nIt did:  {self.did}"

    def toterminal(self, tw: Any) -> None:
        """Write the sentences to pytest's terminal."""
        for line in str(self).splitlines():
            tw.line(line)

    @property
    def reprcrash(self) -> Any:
        """What pytest's short summary shows of it, as `message`."""
        return SimpleNamespace(message=self.did)


class PlainReport:
    """Puts into words what the tests of the suite find.

    Args:
        plain: Whether the words stand in the place of traceback and captured output, or only beside them.
    """

    def __init__(self, plain: bool) -> None:
        self._plain = plain
        self._results: dict[str, dict[str, str]] = {}
        self._compared = ""

    def pytest_assertrepr_compare(self, op: str, left: Any, right: Any) -> None:
        """Note the comparison that did not hold; pytest explains it as it would without."""
        self._compared = comparison(op, left, right)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note what became of a test, and put it into words."""
        report = yield
        theme = theme_of(item)
        if report.failed and call.excinfo is not None:
            did = what_it_did(call.excinfo.value, self._compared)
            report.did = did  # type: ignore[attr-defined]  # for `omni_core.testing.check`
            if theme and self._plain:
                report.longrepr = BrokenPromise(promise_of(item), did)  # type: ignore[assignment]
                report.sections = []
        self._compared = ""
        if theme:
            self._note(item, report)
        return report

    def _note(self, item: pytest.Item, report: pytest.TestReport) -> None:
        cls = getattr(item, "cls", None)
        results = self._results.setdefault(cls.__name__ if cls is not None else "", {})
        if report.failed:
            results[item.nodeid] = "broken"
        elif report.skipped:
            results.setdefault(item.nodeid, "not supported")
        elif report.when == "call":
            results.setdefault(item.nodeid, "kept")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Count the promises of each executor."""
        for name, results in self._results.items():
            counts = {result: list(results.values()).count(result) for result in ("kept", "broken", "not supported")}
            terminalreporter.write_sep("-", f"{name}: {in_words(counts)}")
            if counts["broken"] and self._plain:
                terminalreporter.write_line("pytest -v shows tracebacks and captured output.")


def in_words(counts: dict[str, int]) -> str:
    """Return how many promises were kept, broken and not made."""
    total = sum(counts.values())
    return f"of {total} promise{'s' * (total != 1)}, " + ", ".join(f"{n} {what}" for what, n in counts.items())
