"""What the launcher process is told: how many nodes and ranks, where they meet, and how long to wait for whom."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omni_core.errors import ConfigError
from omni_core.wire.address import parse_address

# That many a node may miss before it counts as lost.
_SIGNS_OF_LIFE = 3
WORKER_MODULE = "omni_exec_torchrun.worker"


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """Settings of one launcher process, or of one node's.

    Attributes:
        module: What each rank runs, as `python -m module`.
        module_arguments: Its command-line arguments.
        model: What the ranks will load, so that it can be imported before they are forked; None is the small model.
        nnodes: Number of nodes, `"2"`, or the fewest and the most, `"1:4"`. The same on all nodes.
        nproc_per_node: Ranks on this node.
        rdzv_backend: Where nodes meet: "c10d" (nothing to install) or another that torch knows.
        rdzv_endpoint: `host:port` of the meeting place. With c10d, the node that has this address hosts it. Empty for a
            single node: then nothing listens beyond loopback.
        rdzv_id: Name of the meeting; the same on all nodes.
        rdzv_configs: Further settings for torch's rendezvous.
        max_restarts: How often the ranks of this node are started again after one has died.
        join_timeout_s: How long to wait for the fewest nodes, whole seconds.
        last_call_timeout_s: How long to wait for more once the fewest are there, whole seconds.
        keep_alive_interval_s: How often a node says that it is there, whole seconds.
        keep_alive_attempts: After how many missing signs of life a node counts as lost.
        read_timeout_s: How long the meeting place may take to answer, whole seconds.
        master_addr: Address of this node by which ranks of other nodes reach it; None finds out.
        log_folder: Folder in which each rank's output is kept, in torch's own layout; None passes the output on.
        stop_grace_s: How long ranks have to end after SIGTERM before they are killed.
        environment: Variables for the launcher and its ranks, beyond this process's own.
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
        """Refuse what cannot be meant.

        Raises:
            ConfigError: Says which, and how it is written.
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
        """Return settings with which a node counts as lost after a time.

        Args:
            node_timeout_s: Seconds without a sign of life.
            fields: The others.
        """
        return cls(
            keep_alive_interval_s=node_timeout_s // _SIGNS_OF_LIFE,
            keep_alive_attempts=_SIGNS_OF_LIFE,
            read_timeout_s=node_timeout_s,
            **fields,
        )

    @property
    def lost_after_s(self) -> int:
        """After how many seconds without a sign of life a node counts as lost."""
        return self.keep_alive_interval_s * self.keep_alive_attempts

    def to_json(self) -> str:
        """Return the settings as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LaunchSettings:
        """Return the settings that `to_json` has written."""
        values = json.loads(text)
        values["module_arguments"] = tuple(values["module_arguments"])
        return cls(**values)


def parse_nnodes(text: str) -> tuple[int, int]:
    """Return the fewest and the most nodes.

    Args:
        text: `"2"` or `"1:4"`.

    Raises:
        ConfigError: It is neither.
    """
    fewest, _, most = text.partition(":")
    try:
        numbers = int(fewest), int(most or fewest)
    except ValueError:
        numbers = 0, 0
    if not 1 <= numbers[0] <= numbers[1]:
        raise ConfigError(f"nnodes={text!r} is no number of nodes: it is written 2, or 1:4 for one to four")
    return numbers
