"""`omni plugins check`: the conformance suite for one executor, and its outcome as a table."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

import click

from omni_core.cli import exit_codes
from omni_core.cli.app import registry_of
from omni_core.cli.tables import print_table
from omni_core.cli.values import KeyValue, KeyValueType, as_table

if TYPE_CHECKING:
    from omni_core.testing.check import Outcome


@click.command("check", short_help="Run the conformance suite for an executor.")
@click.argument("executor")
@click.option("options", "--option", "-o", type=KeyValueType(), multiple=True, help="One of its executor_options.")
@click.option("settings", "--set", "-s", type=KeyValueType(), multiple=True, help="A field of the configuration.")
@click.option(
    "only",
    "--only",
    "-k",
    metavar="THEME",
    multiple=True,
    help="Try one theme alone, or the tests whose names match, as pytest -k has it. Can be given repeatedly.",
)
@click.option("fail_fast", "--fail-fast", "-x", is_flag=True, help="Stop at the first promise that is broken.")
@click.option("traceback", "--traceback", "-v", is_flag=True, help="Show where each test failed, as pytest does.")
@click.option(
    "patience_s",
    "--patience",
    type=click.FloatRange(0.1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds that a result may take.",
)
@click.option("as_json", "--json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(
    context: click.Context,
    *,
    executor: str,
    options: Sequence[KeyValue],
    settings: Sequence[KeyValue],
    only: Sequence[str],
    fail_fast: bool,
    traceback: bool,
    patience_s: float,
    as_json: bool,
) -> int:
    """Run the conformance suite for EXECUTOR, a registered name or an import path pkg.mod:Class.

    It takes about a minute for an executor in this process, and some for one with processes, which it kills many
    times. Each promise that is broken is told as soon as it is known. Ends with 0 if none is; what the executor does
    not declare counts as not supported.
    """
    registry_of(context).resolve_executor(executor)  # if it cannot be used at all, say so and not 150 times
    try:
        from omni_core.testing.check import run_suite
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise click.ClickException("The conformance suite needs pytest: pip install 'omni-core[testing]'") from error
    with _own_descriptor(sys.stderr) as progress, _own_descriptor(sys.stdout) as report:
        teller = _Teller(progress, None if as_json else report, traceback)
        outcomes = run_suite(
            executor,
            executor_options=as_table(options, "--option"),
            config=as_table(settings, "--set"),
            only=only,
            fail_fast=fail_fast,
            patience_s=patience_s,
            on_outcome=teller.tell,
        )
        teller.end()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=2, ensure_ascii=False))
    else:
        _show(executor, outcomes, fail_fast, traceback)
    return exit_codes.FAILED if any(outcome.result == "broken" for outcome in outcomes) else exit_codes.OK


def _show(executor: str, outcomes: Sequence[Outcome], fail_fast: bool, traceback: bool) -> None:
    broken = [outcome for outcome in outcomes if outcome.result == "broken"]
    missing = [outcome for outcome in outcomes if outcome.result == "not supported"]
    if missing:
        click.echo("Not supported:")
        for reason in dict.fromkeys(outcome.did for outcome in missing):
            click.echo(f"  {sum(outcome.did == reason for outcome in missing):3} promises: {reason}")
        click.echo()
    measured = [(outcome, what, value) for outcome in outcomes for what, value in outcome.measurements.items()]
    if measured:
        print_table(
            ["measured", "in", "seconds"], [[what, outcome.name, f"{value:.3f}"] for outcome, what, value in measured]
        )
        click.echo()
    rows = [_row(theme, [one for one in outcomes if one.theme == theme]) for theme in _themes(outcomes)]
    print_table(["theme", "kept", "broken", "not supported", "seconds"], [*rows, _row("all", outcomes)])
    click.echo()
    kept = len(outcomes) - len(broken) - len(missing)
    verdict = "does not conform" if broken else "conforms"
    click.echo(f"{executor} {verdict}: {kept} promises kept, {len(broken)} broken, {len(missing)} not supported.")
    if broken and fail_fast:
        click.echo("Stopped at the first that is broken; those after it were not tried.")
    if broken and not traceback:
        again = shlex.join(["omni", "plugins", "check", executor, "--only", broken[0].name, "--traceback"])
        click.echo(f"Where the first is broken: {again}")


def _themes(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(outcome.theme for outcome in outcomes))


def _row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    counts = [
        str(sum(outcome.result == result for outcome in outcomes) or "-")
        for result in ("kept", "broken", "not supported")
    ]
    return [name, *counts, f"{sum(outcome.seconds for outcome in outcomes):.1f}"]


class _Teller:
    """Says how far the suite is, and tells of each promise that is broken.

    Args:
        progress: Where to say how far it is: on one line of a terminal, or a line for each theme in a log.
        report: Where to tell of what is broken; None: nowhere.
        traceback: Whether to show the report of pytest, too.
    """

    def __init__(self, progress: TextIO, report: TextIO | None, traceback: bool) -> None:
        self._progress = progress
        self._report = report
        self._traceback = traceback
        self._theme = ""
        self._done = 0
        # What was told, in general terms, and how often it happened again.
        self._told: dict[str, tuple[Outcome, list[Outcome]]] = {}

    def tell(self, outcome: Outcome) -> None:
        """Take note of what became of a promise."""
        self._done += 1
        if outcome.result == "broken":
            self._tell_broken(outcome)
        if self._progress.isatty():
            broken = sum(1 + len(more) for _, more in self._told.values())
            self._say(f"\r\x1b[K{self._done} promises tried, {broken} broken: {outcome.name}"[:110])
        elif outcome.theme != self._theme:
            self._theme = outcome.theme
            self._say(f"{self._theme} …\n")

    def end(self) -> None:
        """Tell of what happened again and again."""
        for first, more in self._told.values():
            if more:
                names = ", ".join(outcome.name for outcome in more[:3]) + (" …" if len(more) > 3 else "")
                self._write(f"The same as in {first.name} happened in {len(more)} more: {names}\n\n")

    def _tell_broken(self, outcome: Outcome) -> None:
        kind = re.sub(r"\b[0-9a-f]{8,}\b|\d+", "#", outcome.did)  # ids and numbers are no difference
        if kind in self._told:
            self._told[kind][1].append(outcome)
            if not self._traceback:
                return
        else:
            self._told[kind] = (outcome, [])
        head = click.style(f"BROKEN {outcome.theme}: {outcome.name}", fg="red", bold=True)
        text = f"{head}\n  It must: {outcome.promise}\n  It did:  {outcome.did}\n\n"
        self._write(text + (f"{outcome.detail.rstrip()}\n\n" if self._traceback else ""))

    def _write(self, text: str) -> None:
        if self._report is None:
            return
        if self._progress.isatty():
            self._say("\r\x1b[K")
        self._report.write(text if self._report.isatty() else click.unstyle(text))
        self._report.flush()

    def _say(self, text: str) -> None:
        self._progress.write(text)
        self._progress.flush()


@contextlib.contextmanager
def _own_descriptor(standard: TextIO) -> Iterator[TextIO]:
    """Give standard output or error by a descriptor of its own, for pytest takes hold of the other."""
    standard.flush()
    with os.fdopen(os.dup(standard.fileno()), "w", encoding="utf-8") as stream:
        try:
            yield stream
        finally:
            if stream.isatty():
                stream.write("\r\x1b[K")
