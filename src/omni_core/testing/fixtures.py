"""What the tests of omni and those of its plugins share: `pytest -p omni_core.testing.fixtures`.

What is run when: with `--nightly` every case. Without it, tests named in `by_night` are left out; of tests of which
`by_day` gives a number, so many cases are run, evenly spread over the table; and of a class or test marked `sampled`
one or two cases of each theme of the suite. A test marked `alone` measures time, and is run when nothing else is: see
noxfile.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

# Before torch is imported: one thread per forward, so that results repeat to the bit and no core is oversubscribed.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from omni_core.forking.starter import can_fork
from omni_core.forking.warm import SharedServer, warm_fork_server
from omni_core.log import ROOT
from omni_core.testing import SAMPLE
from omni_core.testing.warm_python import ENGINE, WarmPython

# Tests of the suite whose bounds are so tight that a busy neighbour could break them.
_TIMED = ("test_health_under_load", "test_health_while_a_worker_is_held_up", "test_health_tells_of_stopped_workers")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--nightly` and `--without-torch`."""
    parser.addoption("--nightly", action="store_true", help="run every case, those too for which others stand by day")
    parser.addoption("--without-torch", action="store_true", help="make tests fail that import torch or diffusers")
    parser.addini(
        "by_night",
        "tests that are run with --nightly alone: names of files, tests or single cases, with Class:: or without",
        type="linelist",
    )
    parser.addini(
        "by_day",
        "how many cases of a test are run without --nightly: lines `NAME = NUMBER`; a test or a file",
        type="linelist",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks, refuse the import of torch where it is not wanted, and let Ctrl-C be heard."""
    # A shell lets what it runs with `&` ignore SIGINT, and what the tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--without-torch"):
        refused: dict[str, None] = dict.fromkeys(("torch", "diffusers", "transformers"))
        sys.modules.update(refused)  # type: ignore[arg-type]  # this is how an import is refused
    config.addinivalue_line("markers", "alone: measures time, so nothing else is to run beside it")
    config.addinivalue_line("markers", "sampled: a few cases of each theme are run, and all of them with --nightly")
    config.addinivalue_line("markers", "nightly: is run with --nightly alone")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of the suite that measure time, and leave out what is for the night."""
    names = set(config.getini("by_night"))
    left_to_the_night = _beyond_number(items, config.getini("by_day"))
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        if getattr(item, "originalname", "") in _TIMED:
            item.add_marker("alone")
        if not names.isdisjoint(_names(item)):
            item.add_marker("nightly")
        by_night = item.get_closest_marker("nightly") is not None or item in left_to_the_night
        by_night |= item.get_closest_marker("sampled") is not None and not is_in_sample(item)
        (left_out if by_night and not config.getoption("--nightly") else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def _beyond_number(items: list[pytest.Item], rules: list[str]) -> set[pytest.Item]:
    """Return the cases that are too many by day.

    Args:
        items: All cases.
        rules: `NAME = NUMBER`.
    """
    most = {name.strip(): int(number) for name, _, number in (rule.rpartition("=") for rule in rules)}
    cases: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        name, file = str(getattr(item, "originalname", "")), item.path.name
        if not {name, file, f"{getattr(item.parent, 'name', '')}::{name}"}.isdisjoint(most):
            cases.setdefault((item.nodeid.partition("[")[0], name), []).append(item)
    left: set[pytest.Item] = set()
    for (place, name), of_test in cases.items():
        kind = f"{place.split('::')[-2]}::{name}"
        number = next(most[one] for one in (kind, name, of_test[0].path.name) if one in most)
        chosen = {round(index * (len(of_test) - 1) / max(1, number - 1)) for index in range(number)}
        left.update(item for index, item in enumerate(of_test) if index not in chosen)
    return left


def _names(item: pytest.Item) -> set[str]:
    """Return what a test may be called: its file, one case of it or all, with its class before it or without."""
    names = {item.path.name, item.name, str(getattr(item, "originalname", ""))}
    kind = getattr(item, "cls", None)
    return names if kind is None else names | {f"{kind.__name__}::{name}" for name in names}


def is_in_sample(item: pytest.Item) -> bool:
    """Return whether a case of the conformance suite is one of those that stand for the others."""
    return item.name in SAMPLE or getattr(item, "originalname", "") in SAMPLE


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No configuration of the machine on which the tests run reaches them."""
    for name in list(os.environ):
        if name.startswith("OMNI_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(autouse=True, scope="module")
def _log_as_before_module() -> Iterator[None]:
    """What an engine that the tests of a module share does to the log for its program ends with the module."""
    with _log_restored():
        yield


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """What an engine or the command line does to the log for its program ends with the test."""
    with _log_restored():
        yield


@contextlib.contextmanager
def _log_restored() -> Iterator[None]:
    logger = logging.getLogger(ROOT)
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.propagate, logger.handlers[:] = propagate, handlers


def is_conformance_test(request: pytest.FixtureRequest) -> bool:
    """Return whether a test is of the conformance suite, which shares engines and looks itself at what is left."""
    return hasattr(request.cls, "make_config")


@pytest.fixture(autouse=True)
def _no_thread_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every thread of omni's that a test starts has ended when the test has."""
    before = set(threading.enumerate())
    yield
    if is_conformance_test(request):
        return
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("omni-"):
            thread.join(10)
            assert not thread.is_alive(), f"{thread.name} is left over"


@pytest.fixture
def may_replace_processes() -> bool:
    """Whether an engine that several tests share may have other processes of its own after a test than before."""
    return False


@pytest.fixture
def no_process_left(request: pytest.FixtureRequest, may_replace_processes: bool) -> Iterator[None]:
    """Every process that a test starts has ended when the test has."""
    import psutil

    # Not their children: an engine that several tests share replaces its workers.
    before = {process.pid for process in psutil.Process().children()}
    yield
    if is_conformance_test(request) or may_replace_processes:
        return
    for process in psutil.Process().children():
        assert process.pid in before, f"left over: {process}"


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """Run programs without importing torch and diffusers for each."""
    with WarmPython(ENGINE) as made:
        yield made


@pytest.fixture(scope="session")
def warm_server() -> Iterator[SharedServer | None]:
    """Keep a fork server, which the engines of the tests share; those with a `start_method` of their own do without."""
    if not can_fork():
        yield None
        return
    with warm_fork_server() as server:
        yield server


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Wait for a condition, with a bound, instead of sleeping."""

    def wait(condition: Callable[[], bool], timeout: float = 20.0) -> None:
        tick = threading.Event()
        for _ in range(int(timeout / 0.005)):
            if condition():
                return
            tick.wait(0.005)
        raise AssertionError(f"not within {timeout} s")

    return wait
