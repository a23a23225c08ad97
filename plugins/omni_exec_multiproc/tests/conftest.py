from __future__ import annotations

from collections.abc import Iterator

import pytest

from omni_core.forking.starter import can_fork
from omni_core.forking.warm import SharedServer, warm_fork_server


@pytest.fixture(scope="session", autouse=True)
def warm_server() -> Iterator[SharedServer | None]:
    """The engines of the tests share a fork server; those with a `start_method` of their own do without."""
    if not can_fork():
        yield None
        return
    with warm_fork_server() as server:
        yield server
