from __future__ import annotations

import pytest

from omni_core.testing.fixtures import leave_to_the_night


@pytest.fixture
def may_replace_processes(request: pytest.FixtureRequest) -> bool:
    """An engine that several tests share replaces its launcher, too; the last of them sees what is left."""
    return "engine" in request.fixturenames


# Each launches ranks of its own, for what multiproc has in common with torchrun; its suite is run as a whole.
BY_NIGHT = (
    "test_equal_to_inline[video]",
    "test_equal_to_inline[audio]",
    "test_equal_to_inline[unconditional]",
    "test_equal_to_inline[picture]",
    "test_the_driver_ends[SIGINT-idle]",
    "test_the_driver_ends[SIGINT-loaded]",
    "test_the_driver_ends[SIGKILL-idle]",
    "test_the_driver_ends[SIGTERM-loaded]",
    "test_close_without_use",
    "test_close_twice",
    "test_context_manager_closes",
    "test_close_from_another_thread_wakes_who_waits",
    "test_close_from_several_threads",
    "test_closing_while_asleep",
    "test_an_import_path_that_does_not_exist",
    "test_a_folder_that_does_not_exist",
    "test_a_bad_worker_extension_is_refused",
    "test_bfloat16",
    "test_more_requests_than_places",
    "test_async_engine",
    "test_one_poison_request[exit]",
    "test_no_retries_wanted",
    "test_request_defaults_reach_the_workers",
    "test_a_worker_that_dies_while_it_loads[exiting-17]",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave some cases of the conformance suite to `nox -s nightly`."""
    leave_to_the_night(items, BY_NIGHT)
