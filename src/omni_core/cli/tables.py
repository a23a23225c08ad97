"""Tables for people on a terminal, and plain aligned lines for pipes and files."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

_STYLES = {"ok": "green", "active": "green", "warning": "yellow", "disabled": "yellow", "incompatible": "yellow"}
_BAD = {"problem": "bold red", "broken": "bold red"}


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows on standard output. Words that are a state are coloured on a terminal."""
    if sys.stdout.isatty():
        _print_rich(columns, rows)
        return
    lines = [[column.upper() for column in columns], *rows]
    flat = [[" ".join(cell.split()) for cell in line] for line in lines]
    widths = [max(len(line[index]) for line in flat) for index in range(len(columns))]
    for line in flat:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, so that brackets in a value are not read as markup.
        table.add_row(*(Text(cell, style={**_STYLES, **_BAD}.get(cell, "")) for cell in row))
    Console().print(table)
