"""Requests as bytes, for those that no client would send."""

from __future__ import annotations

import socket

import httpx2

from serving import PATIENCE_S, ProcessServer, ThreadServer


def send(running: ThreadServer | ProcessServer, content: bytes) -> socket.socket:
    address = httpx2.URL(running.url)
    connection = socket.create_connection((address.host, address.port))
    connection.settimeout(PATIENCE_S)
    connection.sendall(content)
    return connection


def head(path: str, length: int, *more: str) -> bytes:
    lines = [f"POST /{path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"]
    return ("\r\n".join([*lines, *more]) + "\r\n\r\n").encode()


def received(connection: socket.socket) -> bytes:
    with connection:
        pieces = iter(lambda: connection.recv(1 << 16), b"")
        return b"".join(pieces)
