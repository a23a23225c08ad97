"""What `executor_options` may set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from omni_core.remote.options import RemoteOptions


class MultiprocOptions(RemoteOptions):
    """Options of the executor `multiproc`; every one has a default that suits most."""

    start_method: Literal["auto", "forkserver", "spawn"] = Field(
        "auto",
        description="forkserver: workers are forked from a process of their own that has imported torch and diffusers, "
        "so that the second and every replacement start fast. spawn: each starts from nothing. auto: forkserver on "
        "Linux, else spawn.",
    )
    shared_memory_bytes: int = Field(
        1 << 30, ge=0, description="Most shared memory that the messages of one worker may take; 0 uses none."
    )
