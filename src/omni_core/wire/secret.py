"""The secret that a driver and its workers share: from the environment, from a file, or a fresh one."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from omni_core.errors import ConfigError
from omni_core.wire.private_folder import private_folder

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


class SecretFile:
    """A file with the secret for the processes that this one starts, which is gone with this one, however it ends.

    On Linux it has no name: others reach it by way of this process's open files. Elsewhere it is one in a folder for
    this user alone, and stays behind if this process is killed.

    Args:
        secret: What is in it.

    Raises:
        OSError: It cannot be made.

    Attributes:
        path: By which processes of this user can open it.
    """

    def __init__(self, secret: bytes) -> None:
        self._fd = -1
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.path = self._in_memory(secret) or self._in_folder(secret)

    def close(self) -> None:
        """Let go of it: nobody can open it any more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.cleanup()

    def _in_memory(self, secret: bytes) -> Path | None:
        if not hasattr(os, "memfd_create"):
            return None
        fd = os.memfd_create("omni-secret", os.MFD_CLOEXEC)
        path = Path(f"/proc/{os.getpid()}/fd/{fd}")
        try:
            os.fchmod(fd, 0o600)
            os.write(fd, secret)
            if _read(path) == secret:
                self._fd = fd
                return path
        except (OSError, ConfigError):  # no /proc
            pass
        os.close(fd)
        return None

    def _in_folder(self, secret: bytes) -> Path:
        self._folder = private_folder("omni-secret-")
        path = Path(self._folder.name) / "secret"
        write_secret(path, secret)
        return path


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
        # Not blocking: a pipe of that name must not hold up whoever only wanted to read a file.
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
