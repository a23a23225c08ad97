"""The secret that a driver and its workers share: from the environment, from a file, or a fresh one."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from omni_core.errors import ConfigError

# Shorter ones can be guessed by trying.
SHORTEST_SECRET = 16
_LONGEST_SECRET = 4096


def load_secret(
    file: str | os.PathLike[str] | None,
    *,
    variable: str,
    file_variable: str,
    environment: Mapping[str, str] = os.environ,
) -> bytes | None:
    """Return the secret that somebody has set, or None if nobody has.

    Args:
        file: File that holds it; None looks at the environment.
        variable: Name of the environment variable that holds the secret itself.
        file_variable: Name of the one that holds the name of a file.
        environment: The environment.

    Raises:
        ConfigError: It is too short, or others can read the file, or it cannot be read.
    """
    if file is None:
        text = environment.get(variable)
        if text:
            return check_secret(text.strip().encode(), variable)
        file = environment.get(file_variable) or None
    return None if file is None else _read(Path(file))


def new_secret() -> bytes:
    """Return a fresh secret: 256 random bits, as text that fits into a file or a variable as it is."""
    return secrets.token_bytes(32).hex().encode()


def write_secret(path: Path, secret: bytes) -> None:
    """Make a file that only this user can read.

    Args:
        path: Where; there is no file of that name yet.
        secret: What to write.

    Raises:
        OSError: It cannot be made.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, 0o600)  # whatever the umask is
        file.write(secret)


def check_secret(secret: bytes, source: str) -> bytes:
    """Return the secret, if it is long enough to be one.

    Args:
        secret: What to look at.
        source: Where it is from, for the message.

    Raises:
        ConfigError: It is too short, or so long that something else was meant.
    """
    if not SHORTEST_SECRET <= len(secret) <= _LONGEST_SECRET:
        raise ConfigError(
            f"the secret in {source} has {len(secret)} bytes; it must have {SHORTEST_SECRET} to {_LONGEST_SECRET}."
            " Make one with: openssl rand -hex 32"
        )
    return secret


def _read(path: Path) -> bytes:
    try:
        # Not blocking: a pipe of that name must not hold up a caller that only wants to read a file.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}, which should hold the secret, is not a file")
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"others may read or write {path}, which holds the secret: chmod 600 {path}")
            secret = os.read(fd, _LONGEST_SECRET + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"the file with the secret cannot be read: {error}") from error
    return check_secret(secret.strip(), str(path))
