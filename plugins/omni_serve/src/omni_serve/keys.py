"""The keys that clients need."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from omni_core.errors import ConfigError

VARIABLE = "OMNI_SERVE_API_KEY"
# Shorter ones can be guessed by trying.
_SHORTEST = 16


def read_keys(file: str | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys of a file, or the one of the environment; empty if there are none.

    Args:
        file: With one key a line; empty lines and those that begin with # are passed over.
        environment: Of the process.

    Raises:
        ConfigError: The file cannot be read, others can read it, or a key is too short.
    """
    if file is not None:
        source, keys = file, _read(file)
        if not keys:
            raise ConfigError(f"{file} has no key in it. Make one with: openssl rand -hex 32")
    else:
        source, keys = VARIABLE, [environment[VARIABLE].strip()] if environment.get(VARIABLE) else []
    for key in keys:
        if len(key) < _SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"{source}: a key has at least {_SHORTEST} characters of ASCII, and no space. Make one with: "
                "openssl rand -hex 32"
            )
    return tuple(keys)


def _read(file: str) -> list[str]:
    try:
        with Path(file).open(encoding="utf-8") as opened:
            status = os.fstat(opened.fileno())
            lines = opened.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {file} cannot be read: {error}") from None
    # A secret that systemd or Kubernetes hands over is root's, and its group may read it. Anybody else's is one's own.
    if stat.S_IMODE(status.st_mode) & (0o077 if status.st_uid else 0o037):
        raise ConfigError(f"Others can read the keys in {file}. Make it yours alone: chmod 600 {file}")
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
