"""The `executor_options` that all executors with worker processes have."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class RemoteOptions(BaseModel):
    """How workers are watched and replaced; every option has a default that suits most."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heartbeat_timeout_s: float | None = Field(
        30.0,
        gt=0,
        description="Seconds after which a busy worker whose process does not answer at all, not even between two "
        "operations (stopped, or stuck in native code that holds Python's lock), is taken for dead. None: never.",
    )
    max_failures: int = Field(
        5,
        ge=1,
        description="Deaths of a replica in a row, without a step done between them, after which it counts as failed. "
        "It is started again all the same, ever more slowly, but requests do not wait for it.",
    )
    max_backoff_s: float = Field(30.0, gt=0, description="Most seconds between two starts of a replica that dies.")
    collective_grace_s: float = Field(
        5.0,
        gt=0,
        description="Seconds that the other ranks of a replica have to reply after one has raised; then they are "
        "taken to wait for it in a collective, and the replica is replaced.",
    )
    send_timeout_s: float = Field(
        10.0, gt=0, description="Seconds after which a worker that does not take a message is taken for dead."
    )
