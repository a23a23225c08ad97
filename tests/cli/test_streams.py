"""Standard streams that are closed, full, or read by nobody: what was asked for is done all the same."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

GENERATE = ("generate", "a", "--seed", "1", "--model", "cli_test_models:Painter")


def shell(redirections, *arguments, before=""):
    """Run `omni` under bash, with what is written to streams that are left open."""
    omni = shlex.join([sys.executable, "-m", "omni_core", *arguments])
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {before}{omni} {redirections}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "redirections",
    ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>/dev/full", "2> >(head -1 >first)"],
)
def test_pictures_are_made_whoever_listens(redirections):
    done = shell(redirections, *GENERATE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert Path("a-1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("redirections", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_nothing_that_is_printed_gets_into_a_file(redirections):
    """A file that took the number of a closed stream would hold the words of libraries."""
    done = shell(redirections, *GENERATE[:-1], "cli_test_models:Shouter", "-o", "x.npz")
    assert done.returncode == 0, done.stderr
    assert Path("shouted").read_text() == "kept"


@pytest.mark.parametrize(
    ("redirections", "arguments", "code"),
    [
        ("2>&-", ("generate", "a", "-o", "x.foo"), 2),
        ("2>/dev/full", ("generate", "a", "-o", "x.foo"), 2),
        ("2>/dev/full", ("generate", "fail", "--model", "cli_test_models:Painter"), 1),
        ("2>&-", ("generate", "fail", "--model", "cli_test_models:Painter"), 1),
        ("2>&-", ("generate", "a", "--model", "./nothing"), 3),
        ("2>/dev/full", ("config", "--nonsense"), 2),
        (">&-", ("config",), 0),
        (">&- 2>&-", ("--help",), 0),
        ("2>&-", ("plugins", "--json"), 0),
    ],
)
def test_exit_codes_are_the_same(redirections, arguments, code):
    assert shell(redirections, *arguments).returncode == code


@pytest.mark.parametrize("arguments", [("config",), ("plugins", "--json"), ("--version",), ("--help",), GENERATE])
def test_a_full_disk_under_standard_output_is_told(arguments):
    more = ("--json",) if arguments is GENERATE else ()
    done = shell(">/dev/full", *arguments, *more)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: standard output cannot be written: No space left on device."
    assert "Traceback" not in done.stderr
    assert Path("a-1.png").exists() == (arguments is GENERATE)


@pytest.mark.parametrize("arguments", [("plugins",), ("config", "--json"), ("generate", "--help")])
def test_a_reader_that_stops_early(arguments):
    """`omni plugins | head -1` says one line and nothing of pipes."""
    done = shell("| head -1", *arguments)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_a_reader_that_is_gone_before_json_is_printed():
    done = shell("--json | true", *GENERATE)
    assert "Traceback" not in done.stderr
    assert Path("a-1.png").exists()


def test_json_without_standard_error():
    [request] = json.loads(shell("2>&-", *GENERATE, "--json").stdout)["requests"]
    assert request["files"] == ["a-1.png"]
