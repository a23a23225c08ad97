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

# Cases that stand for the whole suite where that would take too long: one or two of each theme.
SAMPLE = (
    "test_starts_serves_and_is_healthy",
    "test_close_ends_the_worker_processes",
    "test_in_company_as_alone",
    "test_equal_to_inline[image_to_image]",
    "test_a_late_reply_is_given_to_nobody_else",
    "test_nested_values",
    "test_many_failures_among_others",
    "test_steps_are_counted",
    "test_abort_in_the_middle",
    "test_everything_at_once",
    "test_running_requests_survive[2]",
    "test_a_signal_to_a_worker_in_a_request[SIGKILL]",
    "test_a_worker_that_hangs_while_it_loads",
    "test_engines_leave_nothing",
    "test_the_driver_ends[SIGKILL-loaded]",
)

_THEMES = (
    "lifecycle",
    "results",
    "rpc",
    "payloads",
    "errors",
    "poison",
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
