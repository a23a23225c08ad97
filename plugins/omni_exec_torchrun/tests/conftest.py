from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _forked(warm_server: object) -> None:
    """The launchers of the engines of these tests are forked; the tests of launchers alone start interpreters too."""


@pytest.fixture
def may_replace_processes(request: pytest.FixtureRequest) -> bool:
    """An engine that several tests share replaces its launcher, too; the last of them sees what is left."""
    return "engine" in request.fixturenames
