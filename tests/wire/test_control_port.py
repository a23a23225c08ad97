"""Only who knows the secret gets in, whatever the others send, and they keep nobody out."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import pickle
import queue
import resource
import secrets
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from omni_core.errors import ConfigError, ExecutorError
from omni_core.wire.address import address_towards, format_address, parse_address
from omni_core.wire.authentication import (
    FIRST_SIZE,
    LONGEST_HELLO,
    MARK,
    SECOND_SIZE,
    SERVER_SIZE,
    AuthenticationError,
    ServerHandshake,
    connect,
)
from omni_core.wire.control_port import MOST_STRANGERS, ControlPort
from omni_core.wire.reactor import Reactor

SECRET = b"a secret that is long enough"
HELLO = {"rank": 3, "purpose": "work"}
# A refused connection is closed within this, on a machine that has other things to do.
SOON = 10.0

Change = Callable[[bytes, int], bytes]
_port_settings = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Port:
    """A control port, and the peers that it has let in."""

    def __init__(self, reactor: Reactor, bind_address: str = "127.0.0.1", timeout_s: float = SOON) -> None:
        self.peers: queue.Queue[tuple[socket.socket, dict[str, Any], str]] = queue.Queue()
        self.port = ControlPort(reactor, bind_address, secret=SECRET, on_peer=self._take, handshake_timeout_s=timeout_s)
        self.address = self.port.address

    def _take(self, connection: socket.socket, hello: dict[str, Any], peer: str) -> None:
        self.peers.put((connection, hello, peer))

    def open(self) -> socket.socket:
        return socket.create_connection(parse_address(self.address), SOON)

    def let_in(self, hello: dict[str, Any]) -> float:
        """Connect as a worker does, and return how long it took."""
        began = time.monotonic()
        with connect(self.address, SECRET, hello, SOON) as mine:
            took = time.monotonic() - began
            theirs, said, peer = self.peers.get(timeout=SOON)
            with theirs:
                assert said == hello
                assert peer == format_address(*mine.getsockname()[:2])
                theirs.sendall(b"welcome")
                assert mine.recv(100) == b"welcome"
                assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert mine.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert mine.gettimeout() is None
        return took

    def close(self) -> None:
        self.port.close()
        assert self.peers.empty()


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor("omni-test")
    yield reactor
    reactor.stop()


@pytest.fixture
def port(reactor: Reactor) -> Iterator[Port]:
    files = _num_files()
    port = Port(reactor)
    yield port
    port.close()
    assert _num_files() == files


def _num_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _code(secret: bytes, what: bytes, nonces: bytes, text: bytes = b"") -> bytes:
    return hmac.new(secret, b"omni wire " + what + b"\0" + nonces + text, hashlib.sha256).digest()


def _talk(port: Port, text: bytes, change: Change = lambda part, at: part, secret: bytes = SECRET) -> bytes:
    """Go through the client's side, each part of it changed; return what came after the server's proof."""
    with port.open() as mine, _refused():
        own = secrets.token_bytes(32)
        mine.sendall(first := change(MARK + own, 0))
        if len(first) < FIRST_SIZE:
            mine.shutdown(socket.SHUT_WR)
        answer = _until_closed(mine, SERVER_SIZE)
        if len(answer) < SERVER_SIZE:
            return b""
        nonces = first[len(MARK) :] + answer[len(MARK) : -32]
        assert hmac.compare_digest(answer[-32:], _code(SECRET, b"server", nonces))
        second = _code(secret, b"client", nonces) + struct.pack(">I", len(text))
        third = text + _code(secret, b"hello", nonces, text)
        mine.sendall(change(second, FIRST_SIZE))
        mine.sendall(change(third, FIRST_SIZE + SECOND_SIZE))
        mine.shutdown(socket.SHUT_WR)
        return _until_closed(mine, 32)
    return b""


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Let pass that the other side closes a connection; not that it hangs."""
    try:
        yield
    except TimeoutError:
        raise
    except OSError:
        pass


def _until_closed(connection: socket.socket, most: int) -> bytes:
    data = b""
    while len(data) < most and (piece := connection.recv(most - len(data))):
        data += piece
    return data


def test_a_worker_gets_in(port: Port) -> None:
    for number in range(3):
        port.let_in({"number": number})


def test_over_ipv6(reactor: Reactor) -> None:
    try:
        port = Port(reactor, "::1")
    except ExecutorError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert port.address.startswith("[::1]:")
    port.let_in(HELLO)
    port.close()


def test_many_workers_at_once(port: Port) -> None:
    with ThreadPoolExecutor(16) as pool:
        connections = list(pool.map(lambda n: connect(port.address, SECRET, {"n": n}, SOON), range(48)))
    taken = [port.peers.get(timeout=SOON) for _ in connections]
    assert sorted(hello["n"] for _, hello, _ in taken) == list(range(48))
    for one in (*connections, *(theirs for theirs, _, _ in taken)):
        one.close()


@_port_settings
@given(data=st.binary(max_size=400) | st.binary(max_size=200).map(lambda rest: MARK + rest))
def test_random_bytes_are_refused(port: Port, data: bytes) -> None:
    with port.open() as mine, _refused():
        mine.sendall(data)
        mine.shutdown(socket.SHUT_WR)
        port.let_in(HELLO)  # at the same time
        assert len(_until_closed(mine, 1000)) <= SERVER_SIZE
    assert port.peers.empty()


@_port_settings
@given(data=st.data())
def test_a_changed_handshake_is_refused(port: Port, data: st.DataObject) -> None:
    text = json.dumps(HELLO).encode()
    size = FIRST_SIZE + SECOND_SIZE + len(text) + 32
    where = data.draw(st.integers(0, size - 1), label="where")
    bits = data.draw(st.integers(1, 255), label="bits")

    def flip(part: bytes, at: int) -> bytes:
        if not at <= where < at + len(part):
            return part
        index = where - at
        return part[:index] + bytes([part[index] ^ bits]) + part[index + 1 :]

    assume(not len(MARK) <= where < FIRST_SIZE)  # a changed nonce is a nonce like any other
    assert _talk(port, text, flip) == b""
    assert port.peers.empty()
    port.let_in(HELLO)


@_port_settings
@given(data=st.data())
def test_half_a_handshake_is_refused(port: Port, data: st.DataObject) -> None:
    text = json.dumps(HELLO).encode()
    size = data.draw(st.integers(0, FIRST_SIZE + SECOND_SIZE + len(text) + 31))
    assert _talk(port, text, lambda part, at: part[: max(0, size - at)]) == b""
    assert port.peers.empty()


@given(pieces=st.lists(st.binary(max_size=120), max_size=20))
def test_the_handshake_takes_anything(pieces: list[bytes]) -> None:
    handshake = ServerHandshake(SECRET)
    with pytest.raises(AuthenticationError):
        for piece in (*pieces, bytes(FIRST_SIZE + SECOND_SIZE)):
            rest = piece
            while rest:
                taken, rest = rest[: handshake.wanted], rest[handshake.wanted :]
                handshake.receive(taken)
    assert handshake.hello is None


def test_more_than_was_asked_for_is_refused() -> None:
    handshake = ServerHandshake(SECRET)
    with pytest.raises(AuthenticationError, match="more than"):
        handshake.receive(MARK + bytes(33))


def test_another_secret_is_refused_on_both_sides(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        with pytest.raises(AuthenticationError, match="another secret"):
            connect(port.address, b"another secret, as long", HELLO, SOON)
        assert _talk(port, b"{}", secret=b"another secret, as long") == b""
        port.let_in(HELLO)
    said = [record.omni for record in caplog.records if hasattr(record, "omni")]
    assert len(said) == 2, said
    assert len({one["peer"] for one in said}) == 2
    assert all(one["peer"].startswith("127.0.0.1:") for one in said)
    assert "does not know the secret" in said[1]["reason"]


def test_a_crowd_does_not_fill_the_log(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            assert _talk(port, b"{}", secret=b"another secret, as long") == b""
    assert 1 <= len([record for record in caplog.records if "was refused" in record.getMessage()]) <= 5


def test_a_recorded_handshake_is_refused(port: Port) -> None:
    said: list[bytes] = []

    def record(part: bytes, at: int) -> bytes:
        said.append(part)
        return part

    assert len(_talk(port, json.dumps(HELLO).encode(), record)) == 32
    theirs, _, _ = port.peers.get(timeout=SOON)
    theirs.close()
    with port.open() as mine, _refused():
        mine.sendall(b"".join(said))
        assert len(_until_closed(mine, 1000)) <= SERVER_SIZE
    assert port.peers.empty()


def test_a_server_cannot_be_used_against_itself(port: Port) -> None:
    """What the server proves with is no proof of a client's."""
    with port.open() as mine, _refused():
        mine.sendall(MARK + bytes(32))
        answer = _until_closed(mine, SERVER_SIZE)
        mine.sendall(answer[-32:] + struct.pack(">I", 2) + b"{}" + answer[-32:])
        assert _until_closed(mine, 1000) == b""
    assert port.peers.empty()


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("text", [b"[1]", b"null", b"{", b"\xff\xfe", b"[" * 9000, b""], ids=repr)
def test_a_hello_that_is_no_object_is_refused(port: Port, text: bytes) -> None:
    assert _talk(port, text) == b""
    port.let_in(HELLO)


def test_nothing_is_unpickled(port: Port, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    assert _talk(port, bomb) == b""  # from one that knows the secret, even
    with port.open() as mine, _refused():
        mine.sendall(bomb)
        mine.shutdown(socket.SHUT_WR)
        assert _until_closed(mine, 1000) == b""
    assert not (tmp_path / "exploded").exists()


def test_a_long_hello_is_refused(port: Port) -> None:
    with pytest.raises(ValueError, match="hello"):
        connect(port.address, SECRET, {"name": "x" * LONGEST_HELLO}, SOON)
    assert _talk(port, b" " * (LONGEST_HELLO + 1)) == b""
    port.let_in({"name": "x" * (LONGEST_HELLO - 100)})


def test_who_takes_its_time_is_refused(reactor: Reactor) -> None:
    port = Port(reactor, timeout_s=0.5)
    began = time.monotonic()
    with port.open() as mine:
        mine.settimeout(0.02)
        with _refused():
            for byte in MARK + bytes(32) + bytes(1000):
                mine.sendall(bytes([byte]))  # one now and then
                with contextlib.suppress(TimeoutError):
                    if not mine.recv(1000):
                        break
                assert time.monotonic() - began < SOON
    assert time.monotonic() - began >= 0.4
    port.close()


def test_a_crowd_keeps_nobody_out(port: Port) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1500:
        pytest.skip(f"only {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    crowd: list[socket.socket] = []
    try:
        for _ in range(1000):
            crowd.append(port.open())
        assert port.let_in(HELLO) < 2.0
        assert port.port.num_strangers <= MOST_STRANGERS
    finally:
        for one in crowd:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_busy_crowd_keeps_nobody_out(port: Port) -> None:
    """They connect and leave all the time."""
    done = threading.Event()

    def annoy() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):
                port.open().close()

    with ThreadPoolExecutor(4) as pool:
        try:
            for _ in range(4):
                pool.submit(annoy)
            for _ in range(10):
                assert port.let_in(HELLO) < SOON
        finally:
            done.set()


def test_without_files_it_goes_on() -> None:
    """Connections that cannot be taken do not keep a worker out, nor the thread busy."""
    code = """
        import resource, sys, threading
        from omni_core.wire.reactor import Reactor
        from omni_core.wire.control_port import ControlPort
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        def on_peer(*peer):
            print("in", flush=True)
        port = ControlPort(Reactor("omni-test"), secret=sys.argv[1].encode(), on_peer=on_peer)
        print(port.address, flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), SECRET.decode()]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            crowd = [socket.create_connection(parse_address(address), SOON) for _ in range(100)]
            with connect(address, SECRET, HELLO, SOON):
                assert process.stdout.readline() == "in\n"
            for one in crowd:
                one.close()
        finally:
            process.kill()


def test_closing_ends_what_waits(reactor: Reactor) -> None:
    port = Port(reactor)
    with port.open() as mine:
        mine.sendall(MARK)
        port.close()
        port.close()
        with contextlib.suppress(ConnectionResetError):
            assert mine.recv(10) == b""
    with pytest.raises(TimeoutError, match="nobody at"):
        connect(port.address, SECRET, HELLO, 0.2)


def test_a_receiver_that_raises_harms_nobody(reactor: Reactor) -> None:
    def refuse(*peer: object) -> None:
        raise RuntimeError("not now")

    port = ControlPort(reactor, secret=SECRET, on_peer=refuse)
    with connect(port.address, SECRET, HELLO, SOON) as mine:
        assert mine.recv(10) == b""
    with connect(port.address, SECRET, HELLO, SOON):
        pass
    port.close()


def test_a_client_waits_for_the_driver(reactor: Reactor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = format_address(*busy.getsockname()[:2])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(connect, address, SECRET, HELLO, SOON)
        port = ControlPort(
            reactor, port=parse_address(address)[1], secret=SECRET, on_peer=lambda mine, *peer: mine.close()
        )
        waiting.result(SOON).close()
        port.close()


def test_a_client_finds_out_that_it_is_no_driver() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(connect, format_address(*other.getsockname()[:2]), SECRET, HELLO, SOON)
        theirs, _ = other.accept()
        with theirs:
            theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n" + bytes(100))
            with pytest.raises(AuthenticationError, match="not an omni driver"):
                waiting.result(SOON)


def test_an_address_that_is_taken(reactor: Reactor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        with pytest.raises(ExecutorError, match="cannot listen on 127.0.0.1"):
            ControlPort(reactor, port=busy.getsockname()[1], secret=SECRET, on_peer=lambda *peer: None)


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:port", "host:65536", "::1:80", "host:-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        parse_address(text)


def test_addresses() -> None:
    for text in ("127.0.0.1:80", "[::1]:80", "node-7.example:1"):
        assert format_address(*parse_address(text)) == text
    assert address_towards("127.0.0.1", 80) == "127.0.0.1"
