"""The `executor_options` of `torchrun` and `torchrun-spmd`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from omni_core.errors import ConfigError
from omni_core.validation import Seconds
from omni_core.wire.options import WireOptions
from omni_exec_torchrun.launch_settings import parse_nnodes


class RankOptions(BaseModel):
    """Options that have an effect however the ranks are launched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    timeout_s: Seconds = Field(
        600.0, description="Seconds that a rank waits for the others in a collective before it gives up."
    )


class SpmdOptions(RankOptions):
    """Options of the executor `torchrun-spmd`. Those that are not in `RankOptions` have an effect only there."""

    outputs: Literal["all", "rank0"] = Field(
        "all", description="Which ranks get pictures, in a program that torchrun has started."
    )


class TorchrunOptions(SpmdOptions, WireOptions):
    """Options of the executor `torchrun`, in both of its modes. For ranks on this machine alone none is needed.

    Those that are not in `SpmdOptions` have an effect only where the executor launches the ranks.
    """

    nnodes: str = Field(
        "1",
        description="Nodes, this one included: a number, or 'fewest:most'. Others join with `omni torchrun-worker`.",
    )
    nproc_per_node: int | None = Field(
        None, ge=1, description="Ranks on this node. Unset: all ranks, shared out evenly over the most nodes."
    )
    rdzv_backend: str = Field("c10d", min_length=1, description="Where nodes meet, as torch names it.")
    rdzv_endpoint: str = Field(
        "", description="host:port at which nodes meet: an address of this machine, for c10d. Only for several nodes."
    )
    rdzv_id: str = Field("omni", min_length=1, description="Name of the meeting, the same on all nodes.")
    join_timeout_s: int = Field(
        600, ge=1, le=2_000_000, description="Seconds to wait for the fewest nodes before the start counts as failed."
    )
    node_timeout_s: int = Field(
        15,
        ge=3,
        le=2_000_000,
        description="Seconds without a sign of life after which another node, or the way to it, is lost.",
    )
    max_restarts: int = Field(
        3,
        ge=0,
        description="Times that torch elastic starts the ranks of a launch again. After that they are launched anew, "
        "with a growing pause.",
    )
    backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="What connects the ranks for tensors. auto: nccl on GPUs, else gloo."
    )
    master_addr: str | None = Field(
        None,
        description="Address of this machine by which other nodes reach it; the driver listens there. Unset: "
        "127.0.0.1. Only for several nodes.",
    )
    control_port: int = Field(0, ge=0, lt=1 << 16, description="Port on which the driver listens. 0: any free one.")
    secret_file: Path | None = Field(
        None,
        description="File with the secret that workers must know; only you may be able to read it. Unset: "
        "OMNI_TORCHRUN_SECRET or OMNI_TORCHRUN_SECRET_FILE, else one that is made for this run.",
    )
    log_folder: Path | None = Field(
        None, description="Folder for what each rank prints, in torchrun's layout. Unset: it goes to omni's log."
    )
    fork_server: Path | None = Field(
        None, description="Folder of a fork server that forks the launchers: see `omni_core.forking.warm`."
    )

    @model_validator(mode="after")
    def _check_nodes(self) -> TorchrunOptions:
        _, most = parse_nnodes(self.nnodes)
        if most > 1:
            missing = [name for name in ("rdzv_endpoint", "master_addr") if not getattr(self, name)]
            if missing:
                raise ValueError(f"nnodes = {self.nnodes!r} needs {' and '.join(missing)}, so that other nodes find us")
        elif self.rdzv_endpoint:
            raise ValueError("rdzv_endpoint is set, but nnodes = '1' lets nobody join; set nnodes as well")
        return self

    def refuse_unused(self, *, spmd: bool) -> None:
        """Refuse options that are set and that would have no effect.

        Args:
            spmd: Whether torchrun has started this program; else the executor launches the ranks.

        Raises:
            ConfigError: There is such an option.
        """
        fields = type(self).model_fields
        spmd_fields = SpmdOptions.model_fields.keys()
        unused = fields.keys() - spmd_fields if spmd else spmd_fields - RankOptions.model_fields.keys()
        names = sorted(name for name in unused if getattr(self, name) != fields[name].get_default())
        if not names:
            return
        where = (
            "has no effect in a program that torchrun has started: there torchrun launches the ranks and watches them, "
            "and its own flags say how. Remove it, or start the program with python."
            if spmd
            else "has an effect only in a program that torchrun has started. Remove it, or start it with torchrun."
        )
        raise ConfigError(f"The executor option {', '.join(names)} {where}")
