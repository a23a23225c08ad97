"""Which of the small pipelines a test tries on every run, where it need not try them all."""

from __future__ import annotations

from typing import Any

import pytest

from small_pipelines import CASES


def one_of_each_family() -> list[Any]:
    """Return the names of all cases as parameters of a test, marked `nightly` but for the first of each family."""
    by_day: dict[str, str] = {}
    for name, case in CASES.items():
        by_day.setdefault(case.family, name)
    return [pytest.param(name, marks=() if name in by_day.values() else pytest.mark.nightly) for name in sorted(CASES)]
