from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_thread_left() -> None:
    """The suite keeps engines from one test to the next, and looks for threads itself."""
