"""The listening socket of the driver, to which workers connect. Only those that know the secret are accepted."""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import time
from collections.abc import Callable
from typing import Any

from omni_core.errors import ExecutorError
from omni_core.log import get_logger
from omni_core.replicas.loop import run_in
from omni_core.replicas.timers import Timer
from omni_core.wire.address import format_address
from omni_core.wire.authentication import AuthenticationError, ServerHandshake, tune
from omni_core.wire.reactor import Reactor
from omni_core.wire.secret import check_secret

log = get_logger(__name__)

# Maximum number of unauthenticated connections. Beyond it the oldest is closed, so that workers can still connect.
MOST_STRANGERS = 64
_BACKLOG = 1024
# Connections accepted per turn of the reactor, so that many of them do not delay messages of workers.
_ACCEPTED_PER_TURN = 16
_PAUSE_WITHOUT_FILES_S = 0.2
# Maximum number of refusals logged per interval, and the interval; further ones are counted.
_MOST_TOLD = 5
_TOLD_EVERY_S = 60.0

# Called with an authenticated connection, which the callee then owns, its hello, and its address.
OnPeer = Callable[[socket.socket, dict[str, Any], str], None]


class ControlPort:
    """Listens for workers.

    Args:
        reactor: The reactor in whose thread it runs.
        bind_address: Address to listen on, IPv4 or IPv6. The default is loopback.
        port: Port to listen on; 0 for any free one.
        secret: The secret that workers must know.
        on_peer: Called in the reactor's thread for each worker.
        handshake_timeout_s: Maximum seconds of a handshake.
        silent_s: Seconds without packets from a worker's machine after which its connection breaks.

    Raises:
        ExecutorError: It cannot listen on the address.
        ConfigError: The secret is too short.
    """

    def __init__(
        self,
        reactor: Reactor,
        bind_address: str = "127.0.0.1",
        port: int = 0,
        *,
        secret: bytes,
        on_peer: OnPeer,
        handshake_timeout_s: float = 10.0,
        silent_s: int = 20,
    ) -> None:
        self._reactor = reactor
        self._told_at = -_TOLD_EVERY_S
        self._num_told = self._num_untold = 0
        self._secret = check_secret(secret, "the control port")
        self._on_peer = on_peer
        self._timeout_s = handshake_timeout_s
        self._silent_s = silent_s
        self._strangers: dict[_Stranger, None] = {}  # the oldest first
        self._reopening: Timer | None = None
        self._listener = _listen(bind_address, port)
        host, bound_port = self._listener.getsockname()[:2]
        self._address = format_address(host, bound_port)
        self._is_open = True
        run_in(reactor, self._watch)

    @property
    def address(self) -> str:
        """Where it listens, as `host:port`."""
        return self._address

    @property
    def num_strangers(self) -> int:
        """Number of connections that are not authenticated yet."""
        return len(self._strangers)

    def close(self) -> None:
        """Stop listening, and close unauthenticated connections. From any thread; may be repeated."""
        run_in(self._reactor, self._close)

    def _close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if self._reopening is not None:
            self._reopening.cancel()
        self._reactor.unwatch(self._listener.fileno())
        self._listener.close()
        for stranger in list(self._strangers):
            self._forget(stranger)
            stranger.connection.close()

    def _watch(self) -> None:
        self._reopening = None
        self._reactor.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_PER_TURN):
            try:
                connection, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._make_room(error)
                    return
                continue  # the peer closed it before it was accepted
            address = format_address(*peer[:2])
            if len(self._strangers) >= MOST_STRANGERS:
                self._refuse_oldest("too many connections wait to prove themselves")
            connection.setblocking(False)
            stranger = _Stranger(connection, address, ServerHandshake(self._secret))
            self._strangers[stranger] = None
            stranger.timer = self._reactor.call_later(self._timeout_s, functools.partial(self._time_out, stranger))
            self._reactor.watch(connection.fileno(), functools.partial(self._read, stranger))

    def _make_room(self, error: OSError) -> None:
        """Handle that no file descriptor is left for a new connection."""
        if self._strangers:
            for _ in range((len(self._strangers) + 1) // 2):
                self._refuse_oldest("this process has no files left")
            return
        # Pause: the listener stays readable, which would be a busy loop.
        log.warning("the control port cannot take a connection", error=str(error))
        self._reactor.unwatch(self._listener.fileno())
        self._reopening = self._reactor.call_later(_PAUSE_WITHOUT_FILES_S, self._watch)

    def _refuse_oldest(self, reason: str) -> None:
        silent = (one for one in self._strangers if not one.handshake.has_begun)
        self._refuse(next(silent, None) or next(iter(self._strangers)), reason)

    def _time_out(self, stranger: _Stranger) -> None:
        self._refuse(stranger, f"it has not proved itself within {self._timeout_s:g} s")

    def _read(self, stranger: _Stranger) -> None:
        handshake = stranger.handshake
        try:
            data = stranger.connection.recv(handshake.wanted)
            if not data:
                self._refuse(stranger, "it ended the connection before it had proved itself")
                return
            answer = handshake.receive(data)
            if answer and stranger.connection.send(answer) != len(answer):
                raise BlockingIOError("it takes no answer")  # not even some hundred bytes
        except BlockingIOError as error:
            if error.errno is None:
                self._refuse(stranger, str(error))
        except (AuthenticationError, OSError) as error:
            self._refuse(stranger, str(error))
        else:
            if handshake.hello is not None:
                self._hand_over(stranger, handshake.hello)

    def _hand_over(self, stranger: _Stranger, hello: dict[str, Any]) -> None:
        self._forget(stranger)
        try:
            tune(stranger.connection, self._silent_s)
            stranger.connection.setblocking(True)
            self._on_peer(stranger.connection, hello, stranger.address)
        except BaseException:
            stranger.connection.close()
            raise

    def _refuse(self, stranger: _Stranger, reason: str) -> None:
        self._forget(stranger)
        stranger.connection.close()
        now = time.monotonic()
        if now - self._told_at < _TOLD_EVERY_S and self._num_told >= _MOST_TOLD:
            self._num_untold += 1  # many refusals must not fill the log
            return
        if now - self._told_at >= _TOLD_EVERY_S:
            self._told_at, self._num_told = now, 0
        self._num_told += 1
        more = {"others_not_told": self._num_untold} if self._num_untold else {}
        self._num_untold = 0
        log.warning("a connection to the control port was refused", peer=stranger.address, reason=reason, **more)

    def _forget(self, stranger: _Stranger) -> None:
        del self._strangers[stranger]
        if stranger.timer is not None:
            stranger.timer.cancel()
        self._reactor.unwatch(stranger.connection.fileno())


class _Stranger:
    """A connection that is not authenticated yet."""

    def __init__(self, connection: socket.socket, address: str, handshake: ServerHandshake) -> None:
        self.connection = connection
        self.address = address
        self.handshake = handshake
        self.timer: Timer | None = None


def _listen(host: str, port: int) -> socket.socket:
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.close()
        where = format_address(host, port)
        raise ExecutorError(f"the control port cannot listen on {where}: {error}. Choose another one.") from error
    return listener
