"""Two machines on one: network namespaces with a cable between them that can be cut."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

_TIMEOUT = 20.0
_numbers = itertools.count()
# Nobody has it: what is sent there arrives nowhere, and the sender is not told.
_NOBODY = "02:00:00:00:00:99"


@dataclass(frozen=True)
class Machine:
    """One of the two.

    Attributes:
        namespace: Name of its network namespace.
        address: Its IPv4 address, on the cable.
        device: Its end of the cable.
    """

    namespace: str
    address: str
    device: str

    def command(self, *command: str) -> list[str]:
        """Return the command that runs another one on this machine; the process id stays the same."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a command on this machine."""
        return subprocess.Popen(self.command(*command), **options)

    def run(self, *command: str) -> str:
        """Run a command on this machine, and return what it prints."""
        return subprocess.run(
            self.command(*command), check=True, capture_output=True, text=True, timeout=_TIMEOUT
        ).stdout


@dataclass(frozen=True)
class Network:
    """Both, and the cable."""

    left: Machine
    right: Machine

    def cut(self) -> None:
        """Have everything that is sent vanish, in both directions, with no word to anybody, as when a switch dies."""
        for here, there in ((self.left, self.right), (self.right, self.left)):
            _ip("-n", here.namespace, "neigh", "replace", there.address, "lladdr", _NOBODY, "nud", "permanent",
                "dev", here.device)  # fmt: skip

    def mend(self) -> None:
        """Undo `cut`."""
        for here, there in ((self.left, self.right), (self.right, self.left)):
            _ip("-n", here.namespace, "neigh", "del", there.address, "dev", here.device)


@contextlib.contextmanager
def two_machines() -> Iterator[Network]:
    """Make them, and remove them in the end. Skips the test where that is not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (iproute2) to make network namespaces with")
    name = f"omni{os.getpid()}x{next(_numbers)}"
    # Addresses are seen by these two only.
    left = Machine(f"{name}l", "10.222.0.1", "cable")
    right = Machine(f"{name}r", "10.222.0.2", "cable")
    machines = (left, right)
    try:
        try:
            for machine in machines:
                _ip("netns", "add", machine.namespace)
            _ip("-n", left.namespace, "link", "add", left.device, "type", "veth", "peer", "name", right.device,
                "netns", right.namespace)  # fmt: skip
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        for machine in machines:
            _ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", machine.device)
            for device in ("lo", machine.device):
                _ip("-n", machine.namespace, "link", "set", device, "up")
        yield Network(left, right)
    finally:
        for machine in machines:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", machine.namespace)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=_TIMEOUT)
