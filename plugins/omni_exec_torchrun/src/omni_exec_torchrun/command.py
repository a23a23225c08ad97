"""`omni torchrun-worker`: lets this machine run ranks for a driver on another one."""

from __future__ import annotations

from pathlib import Path

import click

from omni_exec_torchrun.options import TorchrunOptions

# The defaults of the driver's own options: both sides must agree.
_DEFAULTS = {name: field.default for name, field in TorchrunOptions.model_fields.items()}


@click.command("torchrun-worker", short_help="Run ranks on this machine for a driver on another one.")
@click.option("--rdzv-endpoint", required=True, metavar="HOST:PORT", help="Where the driver's node meets others.")
@click.option("--rdzv-id", default=_DEFAULTS["rdzv_id"], show_default=True, help="Name of the meeting, the driver's.")
@click.option("--nnodes", default="2", show_default=True, metavar="N | MIN:MAX", help="Nodes, as for the driver.")
@click.option("--nproc-per-node", default=1, show_default=True, type=click.IntRange(1), help="Ranks on this machine.")
@click.option(
    "--node-timeout",
    default=_DEFAULTS["node_timeout_s"],
    show_default=True,
    type=click.IntRange(3),
    help="node_timeout_s there.",
)
@click.option(
    "--max-restarts",
    default=_DEFAULTS["max_restarts"],
    show_default=True,
    type=click.IntRange(0),
    help="As for the driver.",
)
@click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the driver's secret. Else OMNI_TORCHRUN_SECRET or OMNI_TORCHRUN_SECRET_FILE holds it.",
)
@click.option("--address", metavar="HOST", help="Address of this machine by which other nodes reach it.")
def torchrun_worker(  # noqa: PLR0917  # click passes them by name
    rdzv_endpoint: str,
    rdzv_id: str,
    nnodes: str,
    nproc_per_node: int,
    node_timeout: int,
    max_restarts: int,
    secret_file: Path | None,
    address: str | None,
) -> None:
    """Run ranks on this machine for a driver on another one, until Ctrl-C.

    When the driver or the network is lost, it joins again as soon as they are back.
    """
    from omni_exec_torchrun.node import node_settings, run_node

    settings = node_settings(
        rdzv_endpoint=rdzv_endpoint,
        rdzv_id=rdzv_id,
        nnodes=nnodes,
        nproc_per_node=nproc_per_node,
        node_timeout_s=node_timeout,
        max_restarts=max_restarts,
        master_addr=address,
    )
    run_node(settings, secret_file=secret_file)
