"""On which network interface torch's backends listen: they ask nobody for a password."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def local_interface(init_method: str) -> str | None:
    """Return the loopback interface if ranks that meet by `init_method` must be on one machine, else None."""
    url = urlsplit(init_method)
    if url.scheme != "file" and (url.hostname or "") not in ("localhost", "127.0.0.1", "::1"):
        return None
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)


@contextlib.contextmanager
def listening_on(interface: str | None) -> Iterator[None]:
    """Let gloo and NCCL listen on `interface`, unless the environment says where, or it is None."""
    names = [] if interface is None else [name for name in _VARIABLES if name not in os.environ]
    try:
        os.environ.update(dict.fromkeys(names, interface or ""))
        yield
    finally:
        for name in names:
            del os.environ[name]
