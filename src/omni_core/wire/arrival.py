"""A rank that has connected to the driver: two connections that belong together."""

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

# Ranks whose second connection has not come. More than that are somebody's mistake: the oldest goes.
_MOST_HALVES = 1024


class Hello(pydantic.BaseModel):
    """What a rank says of itself, on each of its connections.

    Attributes:
        channel: Which of the two.
        process: Something that no other process says.
        group: Number of the launch that it belongs to.
        rank: Its rank in that launch.
        world_size: Ranks of that launch.
        local_rank: Its number on its node.
        local_world_size: Ranks on its node.
        pid: Its process id.
        machine: What tells whether a process id means the same process here: see `this_machine`.
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
    """A rank that is there.

    Attributes:
        hello: What it said.
        work: Its connection for calls.
        control: Its connection for what cannot wait.
    """

    hello: Hello
    work: socket.socket
    control: socket.socket

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine, where it can be sent a signal."""
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
        """Take a connection; return the rank if it is the second one.

        Args:
            connection: It is this object's from now on.
            said: What came with it.
            address: Where it is from, for messages.
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
        """End the connections that have no second."""
        for _, connection in self._halves.values():
            connection.close()
        self._halves.clear()


def this_machine() -> str:
    """Return what processes have in common that can send each other signals: the machine, as far as they see it."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    for namespace in ("pid", "net"):
        with contextlib.suppress(OSError):
            parts.append(str(os.stat(f"/proc/self/ns/{namespace}").st_ino))  # noqa: PTH116
    return "-".join(parts) or socket.gethostname()
