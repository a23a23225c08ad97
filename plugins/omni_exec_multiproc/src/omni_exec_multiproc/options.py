"""The `executor_options` of `multiproc`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from omni_core.wire.options import WireOptions


class MultiprocOptions(WireOptions):
    """Options of the executor `multiproc`; every one has a default that suits most."""

    start_method: Literal["auto", "forkserver", "spawn"] = Field(
        "auto",
        description="forkserver: workers are forked from a process of their own that has imported torch and diffusers, "
        "so that the second and every replacement start fast. spawn: each starts from nothing. auto: forkserver on "
        "Linux, that of warm_fork_server where there is one; else spawn.",
    )
    fork_server: Path | None = Field(
        None, description="Folder of a fork server to share with other engines: see `omni_core.forking.warm`."
    )
    shared_memory_bytes: int = Field(
        1 << 30, ge=0, description="Most shared memory that the messages of one worker may take; 0 uses none."
    )

    @model_validator(mode="after")
    def _fork_server_is_used(self) -> MultiprocOptions:
        if self.fork_server is not None and self.start_method == "spawn":
            raise ValueError('fork_server has no use with start_method = "spawn"')
        return self
