"""Pairs the two connections of each rank that connects to the driver."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic

from omni_core.log import get_logger

log = get_logger(__name__)

# Maximum number of ranks that wait for their second connection; beyond it the oldest is closed.
_MOST_HALVES = 1024


class Hello(pydantic.BaseModel):
    """The data with which a rank identifies itself on each of its connections.

    Attributes:
        channel: Which of the two connections this is.
        process: A random text that identifies the process.
        group: Number of the launch.
        rank: Its rank in the launch.
        world_size: Number of ranks of the launch.
        local_rank: Its rank on its node.
        local_world_size: Number of ranks on its node.
        pid: Its process id.
        machine: Identifies the machine: see `this_machine`.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    channel: Literal["work", "control"]
    process: str
    group: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    pid: int
    machine: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """A rank that has made both connections.

    Attributes:
        hello: How it identified itself.
        work: Its connection for calls.
        control: Its connection for urgent messages.
    """

    hello: Hello
    work: socket.socket
    control: socket.socket

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine, so that it can be sent signals."""
        return self.hello.machine == this_machine()

    def close(self) -> None:
        """End both connections: the rank then ends."""
        self.work.close()
        self.control.close()


class Arrivals:
    """Pairs the connections of ranks."""

    def __init__(self) -> None:
        self._halves: dict[str, tuple[Hello, socket.socket]] = {}

    def add(self, connection: socket.socket, said: dict[str, Any], address: str) -> Arrival | None:
        """Take a connection. Return the rank if it is the second one.

        Args:
            connection: The connection; this object owns it from now on.
            said: The hello that came with it.
            address: The address of the peer, for messages.
        """
        try:
            hello = Hello(**said)
        except pydantic.ValidationError as error:
            log.warning("a worker of another version was refused", peer=address, reason=str(error))
            connection.close()
            return None
        other = self._halves.pop(hello.process, None)
        if other is None:
            self._halves[hello.process] = (hello, connection)
            if len(self._halves) > _MOST_HALVES:
                self._halves.pop(next(iter(self._halves)))[1].close()
            return None
        first, first_connection = other
        pair = {first.channel: first_connection, hello.channel: connection}
        if len(pair) < 2:
            first_connection.close()
            connection.close()
            return None
        return Arrival(hello, pair["work"], pair["control"])

    def close(self) -> None:
        """Close the connections that wait for their second."""
        for _, connection in self._halves.values():
            connection.close()
        self._halves.clear()


def this_machine() -> str:
    """Return a text that is equal in two processes if and only if they can send each other signals."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    for namespace in ("pid", "net"):
        with contextlib.suppress(OSError):
            parts.append(str(os.stat(f"/proc/self/ns/{namespace}").st_ino))  # noqa: PTH116
    return "-".join(parts) or socket.gethostname()
