"""The `executor_options` that all executors with replicas have."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from omni_core.validation import Seconds


class ReplicaOptions(BaseModel):
    """How workers are watched and replaced; every option has a default that suits most."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heartbeat_timeout_s: Seconds | None = Field(
        30.0,
        description="Seconds after which a busy worker whose process does not answer at all, not even between two "
        "operations (stopped, or stuck in native code that holds Python's lock), is taken for dead. None: never.",
    )
    max_failures: int = Field(
        5,
        ge=1,
        description="Failed starts of a replica, and deaths while it was idle, in a row and without a step done "
        "between them, after which it counts as failed. It is started again all the same, ever more slowly, but "
        "requests do not wait for it.",
    )
    max_backoff_s: Seconds = Field(30.0, description="Most seconds between two starts of a replica that dies.")
    collective_grace_s: Seconds = Field(
        5.0,
        description="Seconds that the other ranks of a replica have to reply after one has raised; then they are "
        "taken to wait for it in a collective, and the replica is replaced.",
    )
