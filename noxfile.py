"""Every check and test: `nox` runs all of them, `nox -s tests` one."""

from __future__ import annotations

import nox

nox.options.sessions = ["check", "tests", "multiproc", "torchrun", "docs"]
nox.options.error_on_missing_interpreters = True
nox.options.reuse_existing_virtualenvs = True

CONSTRAINTS = ("-c", "constraints.txt")
# One thread per forward: more than the cores is ruinous, and results repeat to the bit.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

# Two at a time, since a forward has one thread; the tests of a module or class stay together, as they share engines.
IN_PARALLEL = ("-n", "2", "--dist", "loadscope")


@nox.session
def check(session: nox.Session) -> None:
    """Lint, format, strict types and import layers."""
    plugins = ("-e", "plugins/omni_exec_multiproc", "-e", "plugins/omni_exec_torchrun")
    session.install(*CONSTRAINTS, "-e", ".[check,test,examples]", *plugins, "nox")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """The tests of the core, in an environment with only the core installed."""
    session.install(*CONSTRAINTS, ".[test]")
    # The documentation and the examples need more: the one has a session of its own, the others come below.
    left_out = ("--ignore=tests/docs", "--ignore=tests/test_examples.py")
    arguments = session.posargs or ["--durations=10", *IN_PARALLEL, *left_out]
    session.run("pytest", *arguments, env=ENVIRONMENT)
    if not session.posargs:
        # What only works with an extra, once the core has shown that it works without.
        session.install(*CONSTRAINTS, ".[test,video,examples]")
        extras = ("tests/cli/test_files.py", "tests/test_examples.py")
        session.run("pytest", *IN_PARALLEL, *extras, env=ENVIRONMENT)


@nox.session
def multiproc(session: nox.Session) -> None:
    """The tests of the plugin for worker processes, in an environment with only it and the core installed."""
    test_plugin(session, "plugins/omni_exec_multiproc")


@nox.session
def torchrun(session: nox.Session) -> None:
    """The tests of the plugin for torch.distributed, in an environment with only it and the core installed."""
    test_plugin(session, "plugins/omni_exec_torchrun")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site, and run everything that README and pages show, with all plugins installed."""
    plugins = ("./plugins/omni_exec_multiproc", "./plugins/omni_exec_torchrun")
    session.install(*CONSTRAINTS, ".[docs,test]", *plugins)
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-q", "docs", "build/docs", env=ENVIRONMENT)
    session.run("pytest", "tests/docs", *(session.posargs or ["--durations=10"]), env=ENVIRONMENT)


def test_plugin(session: nox.Session, folder: str) -> None:
    session.install(*CONSTRAINTS, ".[test]", f"./{folder}")
    session.chdir(folder)
    session.run("pytest", *(session.posargs or ["--durations=10"]), env=ENVIRONMENT)
