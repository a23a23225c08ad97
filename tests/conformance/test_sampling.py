"""What is left to the night is what pyproject.toml names, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TABLE = """
import pytest

@pytest.mark.parametrize("number", range(10))
def test_table(number): ...

@pytest.mark.parametrize("number", range(4))
def test_other(number): ...

@pytest.mark.nightly
def test_marked(): ...

def test_named(): ...

class TestKind:
    @pytest.mark.parametrize("number", range(3))
    def test_table(self, number): ...

    def test_named(self): ...
"""
TABLES = {f"test_table[{number}]" for number in range(10)}
OTHERS = {f"test_other[{number}]" for number in range(4)}
KINDS = {f"TestKind::test_table[{number}]" for number in range(3)}
NAMED = {"test_named", "TestKind::test_named"}


@pytest.fixture
def collected(tmp_path: Path):
    """Return what pytest would run of TABLE with lines of configuration."""

    def collect(*arguments: str, **lists: list[str]) -> set[str]:
        lines = [f"{name} =\n" + "".join(f"    {entry}\n" for entry in entries) for name, entries in lists.items()]
        (tmp_path / "pytest.ini").write_text("[pytest]\n" + "".join(lines))
        (tmp_path / "test_it.py").write_text(TABLE)
        command = [sys.executable, "-m", "pytest", "-p", "omni_core.testing.fixtures", "--collect-only", "-q"]
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return {line.partition("::")[2] for line in done.stdout.splitlines() if line.startswith("test_it.py::")}

    return collect


def test_a_number_of_cases_is_spread_over_the_table(collected) -> None:
    kept = collected(by_day=["test_table = 4", "test_other = 9"])
    # A number holds for every table of that name; of fewer cases all are run.
    assert kept & TABLES == {f"test_table[{number}]" for number in (0, 3, 6, 9)}
    assert kept & KINDS == KINDS
    assert kept - TABLES - KINDS == OTHERS | NAMED


def test_the_narrowest_rule_counts(collected) -> None:
    kept = collected(by_day=["test_it.py = 2", "TestKind::test_table = 1"])
    assert (
        kept == {"test_table[0]", "test_table[9]", "test_other[0]", "test_other[3]", "TestKind::test_table[0]"} | NAMED
    )


def test_by_night(collected) -> None:
    rules = {"by_night": ["TestKind::test_named", "test_table[2]", "test_other"], "by_day": ["test_table = 1"]}
    assert collected(**rules) == {"test_table[0]", "TestKind::test_table[0]", "test_named"}
    assert collected("--nightly", **rules) == TABLES | OTHERS | KINDS | NAMED | {"test_marked"}
