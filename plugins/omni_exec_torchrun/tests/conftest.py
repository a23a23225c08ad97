from __future__ import annotations

from collections.abc import Iterator

import pytest

from omni_core.forking.starter import can_fork
from omni_core.forking.warm import SharedServer, warm_fork_server


@pytest.fixture(scope="session", autouse=True)
def warm_server() -> Iterator[SharedServer | None]:
    """The launchers of the engines of these tests are forked; the tests of launchers alone start interpreters too."""
    if not can_fork():
        yield None
        return
    with warm_fork_server() as server:
        yield server


@pytest.fixture
def may_replace_processes(request: pytest.FixtureRequest) -> bool:
    """An engine that several tests share replaces its launcher, too; the last of them sees what is left."""
    return "engine" in request.fixturenames
