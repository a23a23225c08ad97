"""Standard streams that are closed, full, or read by nobody: what was asked for is done all the same."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

GENERATE = ("generate", "a", "--seed", "1", "--model", "cli_test_models:Shouter")


def shell(redirections, *arguments):
    """Run `omni` under bash, with what is written to streams that are left open."""
    omni = shlex.join([sys.executable, "-m", "omni_core", *arguments])
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {omni} {redirections}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "redirections",
    ["2>&-", ">&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "2> >(head -1 >first)"],
)
def test_pictures_are_made_whoever_listens(redirections):
    """And what libraries print gets into no file, which could have taken the number of a closed stream."""
    done = shell(redirections, *GENERATE)
    assert done.returncode == 0, done.stderr
    assert "Loading" not in done.stdout
    assert Path("a-1.png").read_bytes().startswith(b"\x89PNG")
    assert Path("shouted").read_text() == "kept"


@pytest.mark.parametrize(
    ("redirections", "arguments", "code"),
    [
        ("2>&-", ("generate", "a", "-o", "x.foo"), 2),
        ("2>/dev/full", ("generate", "a", "-o", "x.foo"), 2),
        ("2>/dev/full", ("generate", "fail", "--model", "cli_test_models:Painter"), 1),
        ("2>/dev/full", ("config", "--nonsense"), 2),
        (">&-", ("config",), 0),
        (">&- 2>&-", ("--help",), 0),
        ("2>&-", ("plugins", "--json"), 0),
    ],
)
def test_exit_codes_are_the_same(redirections, arguments, code):
    assert shell(redirections, *arguments).returncode == code


@pytest.mark.parametrize("arguments", [("config",), ("--version",), GENERATE])
def test_a_full_disk_under_standard_output_is_told(arguments):
    more = ("--json",) if arguments is GENERATE else ()
    done = shell(">/dev/full", *arguments, *more)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: standard output cannot be written: No space left on device."
    assert "Traceback" not in done.stderr
    assert Path("a-1.png").exists() == (arguments is GENERATE)


@pytest.mark.parametrize("arguments", [("plugins",), ("generate", "--help")])
def test_a_reader_that_stops_early(arguments):
    """`omni plugins | head -1` says one line and nothing of pipes."""
    done = shell("| head -1", *arguments)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_a_reader_that_is_gone_before_json_is_printed():
    done = shell("--json | true", *GENERATE)
    assert "Traceback" not in done.stderr
    assert Path("a-1.png").exists()
