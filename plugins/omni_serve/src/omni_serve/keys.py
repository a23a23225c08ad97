"""The keys that clients need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omni_core.errors import ConfigError
from omni_core.wire.secret import read_private

VARIABLE = "OMNI_SERVE_API_KEY"
# Shorter ones can be guessed by trying.
_SHORTEST = 16
# Of a file, for some ten thousand keys.
_MOST_BYTES = 1 << 20


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
    content = read_private(Path(file), "the keys of clients", _MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{file} has more than {_MOST_BYTES} bytes: these are not keys.")
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the keys in {file} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
