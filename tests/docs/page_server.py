"""The server that a page starts with `omni serve` in one terminal, for its commands in another."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

# What pages say, as users do; another program of this machine may have it.
PORT = 8000
_START_S = 120.0
# More than a server takes to drain and close.
_END_S = 90.0


class PageServer:
    """A server that runs until it is closed; it is ready once this is made.

    Args:
        command: What the page says, with a port that is free added.
        folder: Where it is run.
        environment: Its variables.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, command: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / "omni-serve.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", f"exec {command} --port 0"],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.port = self._wait_for_port()

    def close(self) -> None:
        """End it as Ctrl-C does, and see that it ends in order."""
        try:
            self._process.send_signal(signal.SIGINT)
            code = self._process.wait(_END_S)
        finally:
            self._process.kill()
            self._process.wait()
        assert code == 0, f"omni serve ended with {code}:\n{self._said()}"

    def _wait_for_port(self) -> int:
        tick = threading.Event()
        for _ in range(int(_START_S / 0.05)):
            if found := re.search(r"serving.*http://[^\s\"]+:(\d+)/", self._said()):
                return int(found[1])
            if self._process.poll() is not None:
                break
            tick.wait(0.05)
        self._process.kill()
        self._process.wait()
        raise AssertionError(f"omni serve has not started:\n{self._said()}")

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")
