"""The entry point of the plugin. It is imported in every omni process, so it imports little."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omni_core import ExecutorSpec, hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def omni_register_executors() -> list[ExecutorSpec]:
    """Offer the executor that runs ranks with torch.distributed."""
    return [
        ExecutorSpec(
            name="torchrun",
            target="omni_exec_torchrun.executor:TorchrunExecutor",
            options="omni_exec_torchrun.options:TorchrunOptions",
            summary="Ranks on one or many nodes, launched by torch.distributed.elastic.",
        ),
        ExecutorSpec(
            name="torchrun-spmd",
            target="omni_exec_torchrun.spmd.executor:SpmdExecutor",
            options="omni_exec_torchrun.options:SpmdOptions",
            summary="One rank of a program that torchrun has started; `torchrun` means this one there.",
        ),
    ]


@hookimpl
def omni_cli(app: click.Group) -> None:
    """Add the command for nodes other than the driver's."""
    from omni_exec_torchrun.command import torchrun_worker

    app.add_command(torchrun_worker)
