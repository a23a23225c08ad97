"""The core's own plugin. Found through the entry point in pyproject.toml, like any other."""

from __future__ import annotations

from omni_core.hookspecs import ExecutorSpec, hookimpl

# Names that mean these executors in every environment: no other plugin can register them.
NAMES = frozenset({"inline"})


@hookimpl
def omni_register_executors() -> list[ExecutorSpec]:
    """Offer the executor that runs in the caller's own process."""
    return [
        ExecutorSpec(
            name="inline",
            target="omni_core.executors.inline:InlineExecutor",
            summary="One worker in this process. The default.",
        )
    ]
