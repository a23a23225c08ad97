"""The `executor_options` of executors whose workers are reached over connections."""

from __future__ import annotations

from pydantic import Field

from omni_core.replicas.options import ReplicaOptions
from omni_core.validation import Seconds


class WireOptions(ReplicaOptions):
    """How workers are watched, replaced and reached; every option has a default that suits most."""

    send_timeout_s: Seconds = Field(
        10.0,
        description="Seconds after which a worker that takes no message and gives no sign of life is taken for dead.",
    )
