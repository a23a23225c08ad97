from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _forked(warm_server: object) -> None:
    """The engines of these tests share a fork server."""
