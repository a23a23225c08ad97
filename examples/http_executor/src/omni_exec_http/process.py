"""A server of the executor's own: a process on this machine that ends with its driver."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys

HOST = "127.0.0.1"


class ServerProcess:
    """Starts a server on a free port of loopback, with a secret that was made for it.

    Args:
        max_body_bytes: Size of the largest body.
        environment: Variables that are set for it besides those of this process.
    """

    def __init__(self, max_body_bytes: int, environment: dict[str, str]) -> None:
        self.secret = secrets.token_bytes(32)
        # It listens before the process is there: the port is known, and a connection waits until it is accepted.
        with socket.create_server((HOST, 0), backlog=128) as listener:
            self.port: int = listener.getsockname()[1]
            command = [sys.executable, "-m", "omni_exec_http.server", "--fd", str(listener.fileno())]
            self._process = subprocess.Popen(
                [*command, "--max-body-bytes", str(max_body_bytes)],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                # What can be imported here can be imported there, however this process came to its path.
                env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
            )
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        with contextlib.suppress(OSError):  # it has ended; whoever connects is told
            self._stdin.write(self.secret.hex().encode() + b"\n")
            self._stdin.flush()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def end_of(self, timeout: float) -> str | None:
        """Return how the process has ended, to be read after "it"; None if it is still there after `timeout`."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        if status >= 0:
            return f"ended with exit status {status}"
        return f"was ended by signal {signal.Signals(-status).name}"

    def kill(self, timeout: float = 0.0) -> None:
        """End the process, and wait for its end.

        Args:
            timeout: Seconds for which it may still end by itself.
        """
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            self._stdin.close()
