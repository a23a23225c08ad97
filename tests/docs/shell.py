"""The shell commands of a page: which are run, and which are looked at instead, with the reason."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import tomllib

from docs.pages import ROOT


def logical_lines(text: str) -> list[str]:
    """Return the commands of a block: comments and empty lines left out, lines that end in a backslash joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def split_runnable(line: str, folder: Path) -> tuple[str, list[str]]:
    """Split a command into what is run, and complaints about the parts that are only looked at.

    Args:
        line: One command, or several joined by `&&`.
        folder: Where it is to be run.
    """
    run: list[str] = []
    complaints: list[str] = []
    parts = line.split(" && ")
    for part in parts:
        look = _look_at(part.strip(), folder)
        if look is None:
            run.append(part)
        else:
            complaints += look(part.strip())
    return " && ".join(run), complaints


def _look_at(command: str, folder: Path) -> Callable[[str], list[str]] | None:
    """Return how a command is checked without being run; None if it is run."""
    if command.startswith("pip install") and _installs_own_folder(command, folder):
        return None
    return next((look for pattern, look in _NOT_RUN if re.match(pattern, command)), None)


def _installs_own_folder(command: str, folder: Path) -> bool:
    """Whether a distribution is installed that the page itself has made: that is run, in an environment of its own."""
    return any((folder / _without_extra(word) / "pyproject.toml").is_file() for word in _requirements(command))


def _requirements(command: str) -> list[str]:
    words = iter(shlex.split(command.split(" #")[0])[2:])
    found = []
    for word in words:
        if word == "-c":
            next(words)
        elif not word.startswith("-"):
            found.append(word)
    return found


def _without_extra(requirement: str) -> str:
    return re.sub(r"\[.*\]$", "", requirement)


def _check_install(command: str) -> list[str]:
    """Every distribution, folder, extra and constraints file that `pip install` names is there."""
    complaints = []
    constraints = re.search(r"-c (\S+)", command)
    if constraints and not (ROOT / constraints[1]).is_file():
        complaints.append(f"there is no {constraints[1]}")
    for requirement in _requirements(command):
        name = _without_extra(requirement)
        folder = ROOT / name if name.startswith(".") else _own_distributions().get(name)
        extras = requirement.removeprefix(name).strip("[]")
        if folder is None:
            if name not in _FROM_ELSEWHERE:
                complaints.append(f"nobody says what {name!r} is: see _FROM_ELSEWHERE")
        elif not (folder / "pyproject.toml").is_file():
            complaints.append(f"there is no distribution at {name}")
        else:
            known = _project(folder).get("optional-dependencies", {})
            complaints += [
                f"{name} has no extra {extra!r}" for extra in extras.split(",") if extra and extra not in known
            ]
    return complaints


def _own_distributions() -> dict[str, Path]:
    folders = [ROOT, *(file.parent for file in (ROOT / "plugins").glob("*/pyproject.toml"))]
    return {_project(folder)["name"]: folder for folder in folders}


def _project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _check_nox(command: str) -> list[str]:
    names = re.findall(r"-s (\w+)", command)
    sessions = re.findall(r"@nox\.session\b.*\ndef (\w+)", (ROOT / "noxfile.py").read_text(encoding="utf-8"))
    return [f"there is no nox session {name!r}" for name in names if name not in sessions]


def _check_parses(command: str) -> list[str]:
    """The command and all of its flags exist, and their values are well formed."""
    import click

    from omni_core.cli.app import make_app

    words = shlex.split(command.split(" #")[0])
    app = make_app()
    try:
        with app.make_context("omni", words[1:2]) as context:
            subcommand = app.get_command(context, words[1])
            if subcommand is None:
                return [f"there is no command omni {words[1]}"]
            subcommand.make_context(words[1], words[2:])
    except click.ClickException as error:
        return [error.format_message()]
    return []


def _check_torchrun(command: str) -> list[str]:
    """The module or the script that torchrun is to run exists, and torchrun knows the flags."""
    from importlib.util import find_spec

    from torch.distributed.run import get_args_parser

    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    try:
        arguments = get_args_parser().parse_args(words[1:])
    except SystemExit:
        return [f"torchrun does not take {' '.join(words[1:])}"]
    there = find_spec(arguments.training_script) if arguments.module else (ROOT / arguments.training_script).is_file()
    return [] if there else [f"there is no {arguments.training_script}"]


def _check_benchmark(command: str) -> list[str]:
    words = shlex.split(command.split(" #")[0])
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    script = ROOT / words[1]
    if not script.is_file():
        return [f"there is no {words[1]}"]
    source = script.read_text(encoding="utf-8")
    flags = [word for word in words[2:] if word.startswith("--")]
    return [f"{words[1]} has no flag {flag}" for flag in flags if f'"{flag}"' not in source]


def _accept(command: str) -> list[str]:
    return []


def _check_files(command: str) -> list[str]:
    """The files of deploy/ that a command names exist, and what it installs."""
    names = re.findall(r"(?<=\s)deploy/\S+", command)
    complaints = [f"there is no {name}" for name in names if not (ROOT / name).is_file()]
    installs = re.match(r"sudo \S*/(pip install .*)", command)
    return complaints + (_check_install(installs[1]) if installs else [])


_FROM_ELSEWHERE = {"nox"}
# What would change the machine, needs another one or takes minutes; each is checked as far as it can be.
_NOT_RUN: list[tuple[str, Callable[[str], list[str]]]] = [
    (r"(python3? -m )?pip install ", _check_install),  # the environment of the tests has it all
    (r"python3? -m venv \S+$", _accept),  # as above
    (r"\. \.venv/bin/activate$", _accept),  # as above
    (r"nox\b", _check_nox),  # runs these tests
    (r"omni torchrun-worker ", _check_parses),  # waits for a driver on another machine
    (r"([A-Z_]+=\S+ )?torchrun ", _check_torchrun),  # the same; examples/ have tests of their own
    (r"([A-Z_]+=\S+ )?python3? benchmarks/", _check_benchmark),  # minutes each
    (r"python3? training/", _check_benchmark),  # an hour
    # deploy/README.md says what of it was tried, and how.
    (r"(sudo|docker|kubectl|journalctl) |openssl .*\| sudo ", _check_files),
]
