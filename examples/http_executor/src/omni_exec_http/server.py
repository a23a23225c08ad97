"""The server: makes omni's worker for a driver that asks for it, and does what that says.

    python -m omni_exec_http.server --secret-file FILE --port 8700

serves one driver after the other until it is ended. An executor that starts its own server hands it a listening socket,
and the secret on standard input, which it then leaves open: when that ends, so does the server.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from omni_core.errors import ConfigError
from omni_exec_http.handler import Handler
from omni_exec_http.session import Session
from omni_exec_http.signing import Signer, read_secret

log = logging.getLogger("omni_exec_http")

MOST_STRANGERS = 32
DRIVER_GONE = 3


class HttpServer(ThreadingHTTPServer):
    """Connections, and the one session that there is at a time.

    Args:
        listener: The socket on which to listen.
        signer: With the secret.
        max_body_bytes: Size of the largest body.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, signer: Signer, max_body_bytes: int) -> None:
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.signer = signer
        self.max_body_bytes = max_body_bytes
        # Who has not yet shown a signature. When there are too many, further ones wait until some are sent away.
        self.strangers = threading.BoundedSemaphore(MOST_STRANGERS)
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._sessions: queue.SimpleQueue[Session] = queue.SimpleQueue()

    def serve_sessions(self, *, once: bool) -> None:
        """Do the work of one driver after the other; or of `once` alone. In the main thread."""
        threading.Thread(target=self._accept, name="http-accept", daemon=True).start()
        while True:
            session = self._sessions.get()
            session.run()
            session.hung_up.wait()  # it may have failed to load, and the driver has to be told
            if once:
                return

    def _accept(self) -> None:
        while True:
            self.handle_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection."""
        self.strangers.acquire()
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a connection raised; the server goes on."""
        log.warning("a connection from %s failed", client_address[0], exc_info=True)

    def begin_session(self, name: str, setup: bytearray) -> Session | None:
        """Begin a session; None if there is one."""
        with self._lock:
            if self._session is not None:
                return None
            self._session = Session(name, setup, self.max_body_bytes)
        self._sessions.put(self._session)
        return self._session

    def end_session(self, session: Session) -> None:
        """End a session. The worker of the next one is made when the call that runs is done."""
        with self._lock:
            self._session = None
        session.end()

    def session_of(self, name: str) -> Session | None:
        """Return the session of that name, if it is not over."""
        session = self._session
        return session if session is not None and session.name == name else None

    def health(self) -> dict[str, Any]:
        """Return what is told to whoever asks whether the server is there."""
        session = self._session
        return {"session": None} if session is None else {"session": session.name, **session.health()}


def main(arguments: list[str] | None = None) -> None:
    """Run a server."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    if options.fd is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the driver decides
        signer = Signer(bytes.fromhex(sys.stdin.readline()))
        threading.Thread(target=_end_with_the_driver, name="http-driver", daemon=True).start()
        listener = socket.socket(fileno=options.fd)
    else:
        try:
            signer = Signer(read_secret(options.secret_file), not_before=time.time())
        except ConfigError as error:
            sys.exit(error.message)
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server((options.host, options.port), family=family, backlog=128)
        log.info("listens on %s port %d", *listener.getsockname()[:2])
    server = HttpServer(listener, signer, options.max_body_bytes)
    try:
        server.serve_sessions(once=options.fd is not None)
    except KeyboardInterrupt:
        sys.exit(130)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)  # the worker is closed; to take all modules apart would take a second, for which the driver waits


def _end_with_the_driver() -> None:
    sys.stdin.read()  # ends when the driver does, however it ends, also while the worker computes
    os._exit(DRIVER_GONE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m omni_exec_http.server", description=main.__doc__)
    secret = parser.add_mutually_exclusive_group(required=True)
    secret.add_argument("--secret-file", type=Path, help="file with the secret, readable by its owner alone")
    secret.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=8700, help="port to listen on (default: %(default)s; 0: any)")
    parser.add_argument("--max-body-bytes", type=int, default=2**30, help="largest call and result")
    return parser


if __name__ == "__main__":
    main()
