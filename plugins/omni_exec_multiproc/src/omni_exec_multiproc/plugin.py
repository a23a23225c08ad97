"""The entry point of the plugin. It is imported in every omni process, so it imports little."""

from __future__ import annotations

from omni_core import ExecutorSpec, hookimpl


@hookimpl
def omni_register_executors() -> list[ExecutorSpec]:
    """Offer the executor that runs in worker processes."""
    return [
        ExecutorSpec(
            name="multiproc",
            target="omni_exec_multiproc.executor:MultiprocExecutor",
            options="omni_exec_multiproc.options:MultiprocOptions",
            summary="Worker processes on this machine, watched and replaced.",
        )
    ]
