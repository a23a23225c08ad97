"""Folders and files for this user alone, whatever the umask is: one of 777 would shut out this user too."""

from __future__ import annotations

import tempfile
from pathlib import Path


def private_folder(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """Make a folder among the temporary ones.

    Raises:
        OSError: There is no place for it.
    """
    folder = tempfile.TemporaryDirectory(prefix=prefix)
    Path(folder.name).chmod(0o700)
    return folder


def make_private(file: Path) -> None:
    """Let this user, and nobody else, read and write a file; an empty one is made if there is none."""
    file.touch()
    file.chmod(0o600)
