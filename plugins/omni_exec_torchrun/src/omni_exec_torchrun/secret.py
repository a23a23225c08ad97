"""Where torchrun's driver and ranks find the secret that they share."""

from __future__ import annotations

import os

from omni_core.wire import secret

SECRET_VARIABLE = "OMNI_TORCHRUN_SECRET"  # noqa: S105  # a name
SECRET_FILE_VARIABLE = "OMNI_TORCHRUN_SECRET_FILE"  # noqa: S105


def load_secret(file: str | os.PathLike[str] | None = None) -> bytes | None:
    """Return the secret that somebody has set, or None if nobody has.

    Args:
        file: File that holds it; None looks at the two environment variables.

    Raises:
        ConfigError: It is too short, or others can read the file, or it cannot be read.
    """
    return secret.load_secret(file, variable=SECRET_VARIABLE, file_variable=SECRET_FILE_VARIABLE)
