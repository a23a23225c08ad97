"""Stands in for `python` where tests start many programs: asks a warm Python (`warm_python.py`) to run the program.

`python -IS warm_client.py SOCKET SETTINGS ARGUMENTS...` does what `python ARGUMENTS...` does, without importing torch
and diffusers once more. It takes signals for the program, and ends as the program does. It imports nothing of omni's,
so that it starts within hundredths of a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    """Run a program, and end as it has ended."""
    address, settings, *arguments = sys.argv[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        for number in FORWARDED:
            signal.signal(number, lambda number, frame: _send_signal(connection, number))
        folder = os.getcwd()  # noqa: PTH109  # to import pathlib takes longer than all of this
        asked = {"arguments": arguments, "cwd": folder, "environment": dict(os.environ), **json.loads(settings)}
        data = json.dumps(asked).encode()
        # The environment may be too long for one packet of a socket: it goes through a file without a name.
        with open(os.memfd_create("program"), "w+b") as file:  # noqa: PTH123
            file.write(data)
            file.flush()
            socket.send_fds(connection, [b"run"], [0, 1, 2, file.fileno()])
        answer = connection.recv(64)
    if not answer:
        sys.exit("the warm Python has gone")
    status = int(answer)
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no other handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    # Not sys.exit: there is nothing to clean up, and a signal that comes now would show a traceback.
    os._exit(status)


def _send_signal(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        connection.send(str(number).encode())


if __name__ == "__main__":
    main()
