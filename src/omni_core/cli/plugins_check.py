"""`omni plugins check`: the conformance suite for one executor, and its outcome as a table."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
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
@click.option("only", "--only", "-k", metavar="WORDS", help="Run the tests whose names match, as pytest -k has it.")
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
    only: str | None,
    patience_s: float,
    as_json: bool,
) -> int:
    """Run the conformance suite for EXECUTOR, a registered name or an import path pkg.mod:Class.

    It takes about a minute for an executor in this process, and some for one with processes, which it kills many
    times. Ends with 0 if all tests pass; those of what the executor does not declare count as not supported.
    """
    registry_of(context).resolve_executor(executor)  # if it cannot be used at all, say so and not 150 times
    try:
        from omni_core.testing.check import run_suite
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise click.ClickException("The conformance suite needs pytest: pip install 'omni-core[testing]'") from error
    with _progress() as progress:
        outcomes = run_suite(
            executor,
            executor_options=as_table(options, "--option"),
            config=as_table(settings, "--set"),
            only=only,
            patience_s=patience_s,
            on_outcome=_Counter(progress) if progress.isatty() else _ThemeLines(progress),
        )
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=2, ensure_ascii=False))
    else:
        _show(executor, outcomes)
    return exit_codes.FAILED if any(outcome.result == "failed" for outcome in outcomes) else exit_codes.OK


def _show(executor: str, outcomes: Sequence[Outcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.result == "failed"]
    missing = [outcome for outcome in outcomes if outcome.result == "not supported"]
    for outcome in failed:
        click.secho(f"\nFAILED {outcome.name}", fg="red", bold=True)
        click.echo(f"{outcome.theme}: {outcome.promise}\n\n{outcome.detail.rstrip()}\n")
    if missing:
        click.echo("Not supported:")
        for reason in dict.fromkeys(outcome.detail for outcome in missing):
            click.echo(f"  {sum(outcome.detail == reason for outcome in missing):3} tests: {reason}")
        click.echo()
    measured = [(outcome, what, value) for outcome in outcomes for what, value in outcome.measurements.items()]
    if measured:
        print_table(
            ["measured", "in", "seconds"], [[what, outcome.name, f"{value:.3f}"] for outcome, what, value in measured]
        )
        click.echo()
    rows = [_row(theme, [one for one in outcomes if one.theme == theme]) for theme in _themes(outcomes)]
    print_table(["theme", "passed", "failed", "not supported", "seconds"], [*rows, _row("all", outcomes)])
    click.echo()
    if failed:
        click.echo(f"{executor} fails {len(failed)} of {len(outcomes)} tests: {', '.join(one.name for one in failed)}")
    else:
        click.echo(f"{executor} conforms: {len(outcomes) - len(missing)} tests passed, {len(missing)} not supported.")


def _themes(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(outcome.theme for outcome in outcomes))


def _row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    counts = [
        str(sum(outcome.result == result for outcome in outcomes) or "-")
        for result in ("passed", "failed", "not supported")
    ]
    return [name, *counts, f"{sum(outcome.seconds for outcome in outcomes):.1f}"]


class _Counter:
    """Shows how far the suite is, on one line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._done = self._failed = 0

    def __call__(self, outcome: Outcome) -> None:
        self._done += 1
        self._failed += outcome.result == "failed"
        self._stream.write(f"\r\x1b[K{self._done} tests, {self._failed} failed: {outcome.name}"[:110])
        self._stream.flush()


class _ThemeLines:
    """Says which theme is at work, on a line each, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._theme = ""

    def __call__(self, outcome: Outcome) -> None:
        if outcome.theme != self._theme:
            self._theme = outcome.theme
            self._stream.write(f"{self._theme} …\n")
            self._stream.flush()


@contextlib.contextmanager
def _progress() -> Iterator[TextIO]:
    """Give standard error by a descriptor of its own, for pytest takes hold of the other."""
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8") as stream:
        try:
            yield stream
        finally:
            if stream.isatty():
                stream.write("\r\x1b[K")
