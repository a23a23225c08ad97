from __future__ import annotations

from collections.abc import Iterator

import pytest

from omni_core.testing.fixtures import leave_to_the_night
from omni_exec_multiproc.starter import has_fork_server
from omni_exec_multiproc.warm import SharedServer, warm_fork_server


@pytest.fixture(scope="session", autouse=True)
def warm_server() -> Iterator[SharedServer | None]:
    """The engines of the tests share a fork server; those with a `start_method` of their own do without."""
    if not has_fork_server():
        yield None
        return
    with warm_fork_server() as server:
        yield server


# Each starts interpreters of its own, and differs little from one that is run by day.
BY_NIGHT = (
    "test_a_script_that_every_worker_would_run[model='rec:build'-spawn]",
    "test_a_script_that_every_worker_would_run[model='rec:build'-forkserver]",
    "test_a_script_that_every_worker_would_run[worker_extension_cls='rec:Extension'-shared]",
    "test_a_factory_and_an_extension_of_the_program_itself[-c]",
    "test_a_factory_and_an_extension_of_the_program_itself[stdin]",
    "test_a_factory_and_an_extension_of_the_program_itself[-m]",
    "test_an_engine_in_a_worker[inline]",
    "test_scripts_need_no_main_guard[thread-spawn]",
    "test_scripts_need_no_main_guard[-c-forkserver]",
    "test_scripts_need_no_main_guard[not closed-forkserver]",
    "test_scripts_need_no_main_guard[file-forkserver]",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave some tests to `nox -s nightly`."""
    leave_to_the_night(items, BY_NIGHT)
