"""Every check and test: `nox` runs all of them, `nox -s tests` one."""

from __future__ import annotations

import nox

nox.options.sessions = ["check", "tests", "multiproc", "torchrun"]
nox.options.error_on_missing_interpreters = True
nox.options.reuse_existing_virtualenvs = True

CONSTRAINTS = ("-c", "constraints.txt")
# One thread per forward: more than the cores is ruinous, and results repeat to the bit.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@nox.session
def check(session: nox.Session) -> None:
    """Lint, format, strict types and import layers."""
    plugins = ("-e", "plugins/omni_exec_multiproc", "-e", "plugins/omni_exec_torchrun")
    session.install(*CONSTRAINTS, "-e", ".[check,test]", *plugins, "nox")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """The tests of the core, in an environment with only the core installed."""
    session.install(*CONSTRAINTS, ".[test]")
    arguments = session.posargs or ["--durations=10"]
    session.run("pytest", *arguments, env=ENVIRONMENT)
    if not session.posargs:
        # What only works with an extra, once the core has shown that it works without.
        session.install(*CONSTRAINTS, ".[test,video]")
        session.run("pytest", "tests/cli/test_files.py", env=ENVIRONMENT)


@nox.session
def multiproc(session: nox.Session) -> None:
    """The tests of the plugin for worker processes, in an environment with only it and the core installed."""
    test_plugin(session, "plugins/omni_exec_multiproc")


@nox.session
def torchrun(session: nox.Session) -> None:
    """The tests of the plugin for torch.distributed, in an environment with only it and the core installed."""
    test_plugin(session, "plugins/omni_exec_torchrun")


def test_plugin(session: nox.Session, folder: str) -> None:
    session.install(*CONSTRAINTS, ".[test]", f"./{folder}")
    session.chdir(folder)
    session.run("pytest", *(session.posargs or ["--durations=10"]), env=ENVIRONMENT)
