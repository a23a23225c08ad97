"""The page of time-outs has each that is fixed, with its value."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from docs.pages import ROOT

PAGE = ROOT / "docs" / "TIMEOUTS.md"
SOURCES = [ROOT / "src" / "omni_core", *sorted((ROOT / "plugins").glob("*/src/*"))]
# The suite's own bounds, and those of `omni doctor`, hold up no engine.
LEFT_OUT = ("testing/", "cli/checks/")


def constants() -> Iterator[tuple[str, str, float]]:
    """Yield name, file and value of each constant of a module that is a number of seconds."""
    for source in SOURCES:
        for file in sorted(source.rglob("*.py")):
            inner = file.relative_to(source).as_posix()
            if inner.startswith(LEFT_OUT):
                continue
            where = f"{source.name}.{inner.removesuffix('.py').replace('/', '.')}"
            for statement in ast.parse(file.read_text(encoding="utf-8")).body:
                match statement:
                    case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                        if name.endswith("_S") and isinstance(value, int | float):
                            yield name, where, float(value)


def test_each_fixed_wait_is_on_the_page() -> None:
    _, _, fixed = PAGE.read_text(encoding="utf-8").partition("## What is fixed")
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| ([\d.]+) \|", fixed, re.MULTILINE)
    shown = sorted((name, where, float(value)) for name, where, value in rows)
    assert len(shown) > 40
    assert shown == sorted(constants())
