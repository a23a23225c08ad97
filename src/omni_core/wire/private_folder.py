"""Folders and files that only this user can access, independent of the umask."""

from __future__ import annotations

import tempfile
from pathlib import Path


def private_folder(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """Create a private temporary folder.

    Raises:
        OSError: It cannot be created.
    """
    folder = tempfile.TemporaryDirectory(prefix=prefix)
    Path(folder.name).chmod(0o700)
    return folder


def make_private(file: Path) -> None:
    """Allow only this user to read and write a file. An empty one is created if it does not exist."""
    file.touch()
    file.chmod(0o600)
