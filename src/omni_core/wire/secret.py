"""The secret that a driver and its workers share: read from the environment or a file, or generated."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from omni_core.errors import ConfigError

# Shorter secrets can be guessed by brute force.
SHORTEST_SECRET = 16
_LONGEST_SECRET = 4096


def load_secret(
    file: str | os.PathLike[str] | None,
    *,
    variable: str,
    file_variable: str,
    environment: Mapping[str, str] = os.environ,
) -> bytes | None:
    """Return the secret that is configured; None if there is none.

    Args:
        file: File with the secret; None reads the environment.
        variable: Name of the environment variable that holds the secret itself.
        file_variable: Name of the environment variable that holds the path of a file.
        environment: The environment.

    Raises:
        ConfigError: It is too short, or others can read the file, or it cannot be read.
    """
    if file is None:
        text = environment.get(variable)
        if text:
            return check_secret(os.fsencode(text.strip()), variable)
        file = environment.get(file_variable) or None
    if file is None:
        return None
    return check_secret(read_private(Path(file), "the secret", _LONGEST_SECRET + 1).strip(), str(file))


def new_secret() -> bytes:
    """Generate a secret: 256 random bits as hexadecimal text."""
    return secrets.token_bytes(32).hex().encode()


def write_secret(path: Path, secret: bytes) -> None:
    """Write the secret to a new file that only this user can read.

    Args:
        path: Path of the file, which must not exist.
        secret: The secret.

    Raises:
        OSError: The file cannot be created.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, 0o600)  # independent of the umask
        file.write(secret)


def check_secret(secret: bytes, source: str) -> bytes:
    """Return the secret if its length is allowed.

    Args:
        secret: The secret.
        source: Where it comes from, for the message.

    Raises:
        ConfigError: It is too short or too long.
    """
    if not SHORTEST_SECRET <= len(secret) <= _LONGEST_SECRET:
        raise ConfigError(
            f"the secret in {source} has {len(secret)} bytes; it must have {SHORTEST_SECRET} to {_LONGEST_SECRET}."
            " Make one with: openssl rand -hex 32"
        )
    return secret


def read_private(path: Path, what: str, most_bytes: int) -> bytes:
    """Return the contents of a file that others must not be able to read.

    The group may read a file that belongs to root: systemd hands secrets over so, and Kubernetes with `fsGroup`.

    Args:
        path: Path of the file.
        what: What it holds, for the messages.
        most_bytes: The number of bytes to read at most.

    Raises:
        ConfigError: It cannot be read, is no file, or others may read or write it.
    """
    try:
        # Non-blocking: if the path is a named pipe, opening must not block.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}, which should hold {what}, is not a file")
            forbidden = stat.S_IRWXG | stat.S_IRWXO
            if status.st_uid == 0:
                forbidden &= ~stat.S_IRGRP
            if status.st_mode & forbidden:
                mode = "600"
                if status.st_uid == 0 != os.geteuid():
                    mode = "440, with a group of your own (in Kubernetes: defaultMode 0400, and fsGroup)"
                raise ConfigError(f"others may read or write {path}, which holds {what}: chmod {mode} {path}")
            return os.read(fd, most_bytes)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"the file with {what} cannot be read: {error}") from error
