"""What omni imports in every process: light, without torch and without the executor itself."""

from __future__ import annotations

from omni_core import ExecutorSpec, hookimpl


@hookimpl
def omni_register_executors() -> list[ExecutorSpec]:
    """Offer the executor. Its modules are imported when it is selected."""
    return [
        ExecutorSpec(
            name="http",
            target="omni_exec_http.executor:HttpExecutor",
            options="omni_exec_http.options:HttpOptions",
            summary="One server process per replica, reached over HTTP; or servers that run already.",
        )
    ]
