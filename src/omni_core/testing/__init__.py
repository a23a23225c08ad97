"""The conformance suite for executors: what every one of them must do, ours and yours.

A plugin's tests inherit it::

    from omni_core.testing import ExecutorConformance

    class TestMyExecutor(ExecutorConformance):
        executor_class = "my-executor"

`omni plugins check my-executor` runs the same tests and prints a table. It needs pytest, which comes with
`pip install 'omni-core[testing]'`.

What an executor does not declare (`runs_diffusion_worker`, `accepts_pipeline`, a name in `supported_options`, worker
processes) is skipped with a reason that begins with `not supported:`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_core.testing.suite import ExecutorConformance

__all__ = ["ExecutorConformance"]

_THEMES = (
    "lifecycle",
    "results",
    "rpc",
    "payloads",
    "errors",
    "streaming",
    "concurrency",
    "sleeping",
    "faults",
    "leaks",
)


def __getattr__(name: str) -> Any:
    # Only when asked for: workers import this package for its pipelines, and need no pytest.
    if name != "ExecutorConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import pytest
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The conformance suite needs pytest: pip install 'omni-core[testing]'", name="pytest"
        ) from error
    # So that a failed assert in them shows its values, as in a test file.
    pytest.register_assert_rewrite(
        *(f"{__name__}.{theme}" for theme in (*_THEMES, "base", "reference", "driver_faults"))
    )
    from omni_core.testing.suite import ExecutorConformance

    return ExecutorConformance
