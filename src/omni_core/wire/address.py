"""Network addresses as text: `host:port`, and `[::1]:port` for IPv6."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys

from omni_core.errors import ConfigError

# The address of an interface, from <linux/sockios.h>.
_SIOCGIFADDR = 0x8915


def parse_address(text: str) -> tuple[str, int]:
    """Return the host and the port of `host:port`.

    Args:
        text: Such as `127.0.0.1:2900`, `node7:2900` or `[::1]:2900`.

    Raises:
        ConfigError: The text is not an address.
    """
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{text!r} is no address: an IPv6 address is written in brackets, as in [::1]:2900")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"{text!r} is no address: it is written host:port, as in 10.0.0.1:2900")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """Return `host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_towards(host: str, port: int) -> str:
    """Return the address by which a peer at `host` can reach this machine. Nothing is sent.

    Args:
        host: Name or address of the peer.
        port: Any of its ports.

    Raises:
        OSError: The name is unknown, or there is no route to it.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port or 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        own: str = probe.getsockname()[0]
        return own


def interface_towards(host: str, port: int) -> str | None:
    """Return the name of the network interface that leads to a peer; None if it cannot be determined.

    Args:
        host: Name or address of the peer, which may be this machine.
        port: Any of its ports.
    """
    if sys.platform != "linux":
        return None
    import fcntl

    with contextlib.suppress(OSError):
        own = address_towards(host, port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # one without an address
                    answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                    if socket.inet_ntoa(answer[20:24]) == own:
                        return name
    return None
