"""The settings of the launcher process: nodes, ranks, rendezvous and timeouts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omni_core.errors import ConfigError
from omni_core.wire.address import parse_address

# Number of missed keep-alives after which a node counts as lost.
_MISSED_KEEP_ALIVES = 3
WORKER_MODULE = "omni_exec_torchrun.worker"


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """Settings of one launcher process, of the driver's node or another.

    Attributes:
        module: The module that each rank runs, as `python -m module`.
        module_arguments: Its command-line arguments.
        model: The model that the ranks will load, which is imported before they are forked; None is the small model.
        nnodes: Number of nodes, `"2"`, or minimum and maximum, `"1:4"`. The same on all nodes.
        nproc_per_node: Number of ranks on this node.
        rdzv_backend: The rendezvous backend: "c10d" (nothing to install) or another that torch knows.
        rdzv_endpoint: `host:port` of the rendezvous. With c10d, the node with this address hosts it. Empty for a single
            node: then nothing listens beyond loopback.
        rdzv_id: Name of the rendezvous; the same on all nodes.
        rdzv_configs: Further settings of torch's rendezvous.
        max_restarts: Maximum number of restarts of the ranks of this node after a death.
        join_timeout_s: Seconds to wait for the minimum number of nodes, an integer.
        last_call_timeout_s: Seconds to wait for further nodes after that, an integer.
        keep_alive_interval_s: Seconds between two keep-alives of a node, an integer.
        keep_alive_attempts: Number of missed keep-alives after which a node counts as lost.
        read_timeout_s: Seconds to wait for a reply of the rendezvous, an integer.
        master_addr: Address by which ranks of other nodes reach this node; None determines it.
        log_folder: Folder for the output of each rank, in torch's layout; None forwards the output.
        stop_grace_s: Seconds between SIGTERM and SIGKILL for ranks.
        environment: Additional variables for the launcher and its ranks.
    """

    module: str = WORKER_MODULE
    module_arguments: tuple[str, ...] = ()
    model: str | None = None
    nnodes: str = "1"
    nproc_per_node: int = 1
    rdzv_backend: str = "c10d"
    rdzv_endpoint: str = ""
    rdzv_id: str = "omni"
    rdzv_configs: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    max_restarts: int = 3
    join_timeout_s: int = 600
    last_call_timeout_s: int = 3
    keep_alive_interval_s: int = 5
    keep_alive_attempts: int = 3
    read_timeout_s: int = 15
    master_addr: str | None = None
    log_folder: str | None = None
    stop_grace_s: float = 1.0
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: A setting is invalid; the message says which.
        """
        if self.rdzv_endpoint and self.rdzv_backend == "c10d":
            parse_address(self.rdzv_endpoint)
        elif not self.rdzv_endpoint and parse_nnodes(self.nnodes) != (1, 1):
            raise ConfigError(f"nnodes={self.nnodes!r} needs an rdzv_endpoint (host:port) at which the nodes meet")
        parse_nnodes(self.nnodes)
        if not self.rdzv_id:
            raise ConfigError("rdzv_id must not be empty: it is the name by which nodes find each other")
        for name in (
            "nproc_per_node",
            "join_timeout_s",
            "last_call_timeout_s",
            "keep_alive_interval_s",
            "keep_alive_attempts",
            "read_timeout_s",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_restarts", "stop_grace_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, and it is {getattr(self, name)}")

    @classmethod
    def for_nodes(cls, node_timeout_s: int, **fields: Any) -> LaunchSettings:
        """Return settings with which a node counts as lost after `node_timeout_s`.

        Args:
            node_timeout_s: Seconds without a keep-alive.
            fields: The other settings.
        """
        return cls(
            keep_alive_interval_s=node_timeout_s // _MISSED_KEEP_ALIVES,
            keep_alive_attempts=_MISSED_KEEP_ALIVES,
            read_timeout_s=node_timeout_s,
            **fields,
        )

    @property
    def lost_after_s(self) -> int:
        """Seconds without a keep-alive after which a node counts as lost."""
        return self.keep_alive_interval_s * self.keep_alive_attempts

    def to_json(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LaunchSettings:
        """Return the settings from the result of `to_json`."""
        values = json.loads(text)
        values["module_arguments"] = tuple(values["module_arguments"])
        return cls(**values)


def parse_nnodes(text: str) -> tuple[int, int]:
    """Return the minimum and the maximum number of nodes.

    Args:
        text: `"2"` or `"1:4"`.

    Raises:
        ConfigError: The text is neither.
    """
    fewest, _, most = text.partition(":")
    try:
        numbers = int(fewest), int(most or fewest)
    except ValueError:
        numbers = 0, 0
    if not 1 <= numbers[0] <= numbers[1]:
        raise ConfigError(f"nnodes={text!r} is no number of nodes: it is written 2, or 1:4 for one to four")
    return numbers
