"""What tests have started in a new interpreter: it tells what it has."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

_SIGNALS = ("SIGCHLD", "SIGTERM", "SIGINT", "SIGPIPE", "SIGHUP", "SIGUSR1")


def tell(fd: int, *more: object) -> None:
    said = {
        "path": sys.path,
        "environment": dict(os.environ),
        "signals": {name: str(signal.getsignal(getattr(signal, name))) for name in _SIGNALS},
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "standard files": [_target(number) for number in range(3)],
        "more": more,
        "flags": [sys.flags.isolated, sys.flags.no_site, sys.flags.optimize, sys.warnoptions],
        "session": os.getsid(0) == os.getpid(),
        "__file__": __file__,
    }
    with os.fdopen(fd, "w") as file:
        json.dump(said, file)
    child = os.fork()
    if child == 0:
        os._exit(7)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _target(fd: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return "closed"
