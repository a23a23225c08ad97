"""Every check and test: `nox` runs what each change must pass, `nox -s quick` what takes less than a minute.

Torch and what else omni and its tests need are installed once, into `.nox/base`. Each environment here sees those and
has besides only what its name says; so the tests of the core show that it works with the core alone.

`nox` runs two jobs at a time, since a forward has one thread, and then the tests that measure time, one by one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent / ".ci"))
from environments import Environment, make_base
from jobs import AT_A_TIME, Job, run_all

nox.options.sessions = ["all"]

MULTIPROC_FOLDER = "plugins/omni_exec_multiproc"
TORCHRUN_FOLDER = "plugins/omni_exec_torchrun"
SERVE_FOLDER = "plugins/omni_serve"
METRICS_FOLDER = "plugins/omni_metrics"
PLUGINS = (f"./{MULTIPROC_FOLDER}", f"./{TORCHRUN_FOLDER}", f"./{SERVE_FOLDER}", f"./{METRICS_FOLDER}[prometheus,otel]")

CHECK = Environment("check", (".[check,docs,examples]", *PLUGINS, "nox"), editable=True)
CORE = Environment("core", (".",))
EXTRAS = Environment("extras", (".[video,examples]",))
MULTIPROC = Environment("multiproc", (".", PLUGINS[0]))
TORCHRUN = Environment("torchrun", (".", PLUGINS[1]))
SERVE = Environment("serve", (".[video]", f"./{SERVE_FOLDER}[test]"))
# With a server and worker processes: what is counted and traced is what those do.
METRICS = Environment("metrics", (".", PLUGINS[0], PLUGINS[2], f"./{METRICS_FOLDER}[test]"))
DOCS = Environment("docs", (".[docs]", *PLUGINS, "openai", "httpx2"))


def pytest(name: str, environment: Environment, *arguments: str, folder: str = ".", which: str = "not alone") -> Job:
    return Job(name, environment, (("pytest", "--durations=5", "-m", which, *arguments),), folder)


SUITE = "tests/test_conformance.py"
TORCHRUN_SUITE = pytest("torchrun: conformance", TORCHRUN, SUITE, folder=TORCHRUN_FOLDER)
TORCHRUN_TESTS = pytest("torchrun", TORCHRUN, f"--ignore={SUITE}", folder=TORCHRUN_FOLDER)
TORCHRUN_ALONE = pytest("torchrun, alone", TORCHRUN, folder=TORCHRUN_FOLDER, which="alone")
MULTIPROC_SUITE = pytest("multiproc: conformance", MULTIPROC, SUITE, folder=MULTIPROC_FOLDER)
MULTIPROC_TESTS = pytest("multiproc", MULTIPROC, f"--ignore={SUITE}", folder=MULTIPROC_FOLDER)
SERVE_TESTS = pytest("serve", SERVE, folder=SERVE_FOLDER)
METRICS_TESTS = pytest("metrics", METRICS, folder=METRICS_FOLDER)
METRICS_ALONE = pytest("metrics, alone", METRICS, folder=METRICS_FOLDER, which="alone")
MULTIPROC_ALONE = pytest("multiproc, alone", MULTIPROC, folder=MULTIPROC_FOLDER, which="alone")

ENGINE_FOLDERS = ("tests/engine", "tests/worker")
CLI_FOLDERS = ("tests/cli", "tests/conformance", "tests/plugins")
# They need more than the core: the documentation has a job of its own, the examples one with extras.
ELSEWHERE = ("--ignore=tests/docs", "--ignore=tests/test_examples.py")
ENGINE_TESTS = pytest("core: engine, worker", CORE, *ENGINE_FOLDERS)
CLI_TESTS = pytest("core: command line, suite, plugins", CORE, *CLI_FOLDERS)
OTHER_TESTS = pytest(
    "core: the rest", CORE, "tests", *ELSEWHERE, *(f"--ignore={folder}" for folder in (*ENGINE_FOLDERS, *CLI_FOLDERS))
)
EXTRA_TESTS = pytest("core with extras", EXTRAS, "tests/cli/test_files.py", "tests/test_examples.py")
CORE_ALONE = pytest("core, alone", CORE, "tests", *ELSEWHERE, which="alone")

SITE = ("sphinx", "-W", "--keep-going", "-n", "-q", "docs", "build/docs")
DOCS_TESTS = Job("docs", DOCS, (SITE, ("pytest", "--durations=5", "tests/docs")))
CHECKS = Job("check", CHECK, (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",), ("lint-imports",)))
# What a change can be tried with in seconds.
LIGHT = Job(
    "tests without torch",
    CHECK,
    (
        (
            "pytest",
            "-q",
            "--without-torch",
            "tests/test_costs.py",
            "tests/test_pictures.py",
            "tests/test_scheduler.py",
            "tests/test_serial_thread.py",
            "tests/plugins/test_registry.py",
            "tests/replicas/test_replica.py",
            "tests/replicas/test_life_cycle.py",
            "tests/wire",
            "tests/cli/test_names.py",
            "tests/cli/test_options.py",
            "tests/cli/test_values.py",
            "tests/cli/test_plugins_new.py",
            "tests/conformance/test_sentences.py",
            "tests/worker/test_parallel_layout.py",
        ),
    ),
)
CORE_JOBS = (CLI_TESTS, ENGINE_TESTS, OTHER_TESTS, EXTRA_TESTS)
# The longest first, so that no long one is left for the end.
JOBS = (TORCHRUN_SUITE, SERVE_TESTS, CLI_TESTS, TORCHRUN_TESTS, ENGINE_TESTS, MULTIPROC_TESTS, DOCS_TESTS, OTHER_TESTS)
JOBS = (*JOBS, MULTIPROC_SUITE, METRICS_TESTS, EXTRA_TESTS, CHECKS)
# What measures time, when nothing else runs. Those of torchrun by night: by day multiproc shows the same, on the same
# replicas and wire.
ALONE = (CORE_ALONE, MULTIPROC_ALONE, METRICS_ALONE)


def run(session: nox.Session, *jobs: Job, alone: tuple[Job, ...] = (), more: tuple[str, ...] = ()) -> None:
    begun = time.monotonic()
    make_base()
    session.log(f"{len(jobs)} jobs, {AT_A_TIME} at a time; each is reported when it has ended")
    report = run_all(jobs, alone, (*more, *session.posargs))
    for name, seconds in sorted(report.seconds.items(), key=lambda entry: -entry[1]):
        session.log(f"{seconds:6.0f} s  {name}{'  FAILED' if name in report.failed else ''}")
    session.log(f"{time.monotonic() - begun:6.0f} s  in all")
    if report.failed:
        session.error(f"failed: {', '.join(report.failed)}")


@nox.session(name="all", venv_backend="none")
def everything(session: nox.Session) -> None:
    """Everything that a change must pass, the sessions below together."""
    run(session, *JOBS, alone=ALONE)


@nox.session(venv_backend="none", default=False)
def nightly(session: nox.Session) -> None:
    """All cases of what `nox` samples: the conformance suite for torchrun, examples and templates, every stock pipeline
    in company, long random traffic, faults that take long to show, and fresh interpreters.

    When: by night, before a release, and after a change of the suite, of the examples, or of how workers are started.
    It takes about five times as long as `nox`: 81 minutes on two cores in November 2026.
    """
    run(session, *JOBS, alone=(*ALONE, TORCHRUN_ALONE), more=("--nightly",))


@nox.session(venv_backend="none", default=False)
def soak(session: nox.Session) -> None:
    """Ten minutes of random traffic with kills, stops and poison on two worker processes; prints what came of it.

    When: by night, before a release, and after a change of the scheduler, of `replicas/` or `wire/`, or of what a
    worker isolates.
    `nox -s soak -- --seconds 60` is shorter.
    """
    run(session, Job("soak", MULTIPROC, (("benchmarks.soak", *session.posargs),)))


@nox.session(venv_backend="none", default=False)
def quick(session: nox.Session) -> None:
    """Lint, format, types, layers, and the tests that need no torch: less than a minute, once it is installed."""
    run(session, CHECKS, LIGHT)


@nox.session(venv_backend="none", default=False)
def check(session: nox.Session) -> None:
    """Lint, format, strict types and import layers."""
    run(session, CHECKS)


@nox.session(venv_backend="none", default=False)
def tests(session: nox.Session) -> None:
    """The tests of the core, in an environment with only the core installed; then those that need an extra."""
    run(session, *CORE_JOBS, alone=(CORE_ALONE,))


@nox.session(venv_backend="none", default=False)
def multiproc(session: nox.Session) -> None:
    """The tests of the plugin for worker processes, in an environment with only it and the core installed."""
    run(session, MULTIPROC_TESTS, MULTIPROC_SUITE, alone=(MULTIPROC_ALONE,))


@nox.session(venv_backend="none", default=False)
def torchrun(session: nox.Session) -> None:
    """The tests of the plugin for torch.distributed, in an environment with only it and the core installed."""
    run(session, TORCHRUN_TESTS, TORCHRUN_SUITE, alone=(TORCHRUN_ALONE,))


@nox.session(venv_backend="none", default=False)
def serve(session: nox.Session) -> None:
    """The tests of the server, with only it and the core installed. Those of its page need Chromium."""
    run(session, SERVE_TESTS)


@nox.session(venv_backend="none", default=False)
def metrics(session: nox.Session) -> None:
    """The tests of the plugin for metrics and traces, with the server, multiproc and the core. They need Prometheus."""
    run(session, METRICS_TESTS, alone=(METRICS_ALONE,))


@nox.session(venv_backend="none", default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation site, and run everything that README and pages show, with all plugins installed."""
    run(session, DOCS_TESTS)
