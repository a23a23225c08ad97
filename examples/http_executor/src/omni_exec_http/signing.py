"""Proof that both sides know the secret, given before either of them unpickles anything.

A request says when it was made, carries a number that is never used again, and is signed with the secret over these,
its method, its path, the length and the digest of its body. So the server knows from the headers alone whether to read
the body. A reply is signed over the request's number, its status and its digest, so that it answers this request and
no other.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from omni_core.errors import ConfigError

WINDOW_S = 60.0
MIN_SECRET_BYTES = 16
TIME, NONCE, DIGEST, SIGNATURE = "X-Omni-Time", "X-Omni-Nonce", "X-Omni-Digest", "X-Omni-Signature"


class Headers(Protocol):
    """Headers as they come, whatever holds them."""

    def get(self, name: str, failobj: str, /) -> str:
        """Return the header of that name, or `failobj`."""


class NotAuthenticError(Exception):
    """A request or a reply does not prove that its sender knows the secret, or was sent before."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the signed headers of a request say.

    Attributes:
        nonce: The number of the request.
        length: Bytes of its body.
        digest: SHA-256 of its body, in hexadecimal digits.
    """

    nonce: str
    length: int
    digest: str


class Signer:
    """Signs and checks; one for each side of a connection.

    Args:
        secret: What both sides know.
        not_before: Requests that were made earlier are refused: those that a server took before it was started anew
            are numbers that it has forgotten.
    """

    def __init__(self, secret: bytes, not_before: float = 0.0) -> None:
        self._secret = secret
        self._not_before = not_before
        self._lock = threading.Lock()
        self._seen: dict[str, float] = {}  # in the order in which they came

    def sign_request(self, method: str, path: str, length: int, digest: str) -> dict[str, str]:
        """Return the headers of a new request."""
        moment, nonce = repr(time.time()), secrets.token_hex(16)
        signature = self._sign("request", method, path, moment, nonce, str(length), digest)
        return {TIME: moment, NONCE: nonce, DIGEST: digest, SIGNATURE: signature, "Content-Length": str(length)}

    def check_request(self, method: str, path: str, headers: Headers) -> Claim:
        """Return what a request claims, once it is known to be genuine, fresh and new.

        Raises:
            NotAuthenticError: It is not.
        """
        names = (TIME, NONCE, "Content-Length", DIGEST, SIGNATURE)
        moment, nonce, length, digest, signature = (headers.get(name, "") for name in names)
        if not _equal(self._sign("request", method, path, moment, nonce, length, digest), signature):
            raise NotAuthenticError("it is not signed with the secret of this server")
        made, now = float(moment), time.time()
        if abs(now - made) > WINDOW_S or made < self._not_before:
            raise NotAuthenticError("it was not made just now; are the clocks of both machines right?")
        with self._lock:
            if nonce in self._seen:
                raise NotAuthenticError("it came before")
            self._seen[nonce] = now
            while now - next(iter(self._seen.values())) > 2 * WINDOW_S:
                del self._seen[next(iter(self._seen))]
        return Claim(nonce, int(length), digest)

    def sign_reply(self, nonce: str, status: int, digest: str) -> str:
        """Return the signature of the reply to the request with this number."""
        return self._sign("reply", nonce, str(status), digest)

    def check_reply(self, nonce: str, status: int, digest: str, signature: str | None) -> None:
        """Return if a reply is genuine.

        Raises:
            NotAuthenticError: It is not.
        """
        if not _equal(self.sign_reply(nonce, status, digest), signature or ""):
            raise NotAuthenticError("it is not signed with the secret")

    def _sign(self, *fields: str) -> str:
        # No field but the signature itself can hold a line break, so fields cannot be moved into each other.
        return hmac.new(self._secret, "\n".join(fields).encode(), hashlib.sha256).hexdigest()


def read_secret(file: Path) -> bytes:
    """Return the secret that a file holds, without the white space around it.

    Raises:
        ConfigError: The file cannot be read, others may read it, or what it holds is too short.
    """
    try:
        mode, secret = file.stat().st_mode, file.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"The secret file {file} cannot be read: {error.strerror}.") from error
    if mode & 0o077:
        raise ConfigError(f"Others than its owner may read the secret file {file}. Say: chmod 600 {file}")
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(f"The secret in {file} is shorter than {MIN_SECRET_BYTES} bytes.")
    return secret


def _equal(expected: str, given: str) -> bool:
    return hmac.compare_digest(expected.encode(), given.encode(errors="replace"))
