"""`executor_class = "torchrun"`: selects SPMD mode or driver mode."""

from __future__ import annotations

from typing import Any

from omni_exec_torchrun.spmd.world import spmd_environment


def __getattr__(name: str) -> Any:
    """Return the executor class: SPMD mode in a program that torchrun has started, else driver mode."""
    if name != "TorchrunExecutor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if spmd_environment() is not None:
        from omni_exec_torchrun.spmd.executor import SpmdExecutor

        return SpmdExecutor
    from omni_exec_torchrun.driver import DriverExecutor

    return DriverExecutor
