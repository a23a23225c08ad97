"""The secret of driver and ranks: the names of its environment variables."""

from __future__ import annotations

import os

from omni_core.wire import secret

SECRET_VARIABLE = "OMNI_TORCHRUN_SECRET"  # noqa: S105  # a name
SECRET_FILE_VARIABLE = "OMNI_TORCHRUN_SECRET_FILE"  # noqa: S105


def load_secret(file: str | os.PathLike[str] | None = None) -> bytes | None:
    """Return the configured secret; None if there is none.

    Args:
        file: File with the secret; None reads the two environment variables.

    Raises:
        ConfigError: It is too short, or others can read the file, or it cannot be read.
    """
    return secret.load_secret(file, variable=SECRET_VARIABLE, file_variable=SECRET_FILE_VARIABLE)
