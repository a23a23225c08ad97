"""A temporary file for this process and those that it starts."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from omni_core.wire.private_folder import make_private, private_folder


class PrivateFile:
    """A file that only processes of this user can open. (A port could be reached by every user of the machine.)

    On Linux it has no name and disappears with this process, also if that is killed; other processes open it through
    `/proc`. On other systems it lies in a private folder, and remains if this process is killed.

    Args:
        name: Name of the file.
        content: Initial content.

    Raises:
        OSError: It cannot be created.

    Attributes:
        path: The path by which it can be opened.
    """

    def __init__(self, name: str, content: bytes = b"") -> None:
        self._fd = -1
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.path = self._in_memory(name, content) or self._in_folder(name, content)

    def close(self) -> None:
        """Delete the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.cleanup()

    def _in_memory(self, name: str, content: bytes) -> Path | None:
        if not hasattr(os, "memfd_create"):
            return None
        fd = os.memfd_create(f"omni-{name}", os.MFD_CLOEXEC)
        path = Path(f"/proc/{os.getpid()}/fd/{fd}")
        try:
            os.fchmod(fd, 0o600)
            os.write(fd, content)
            if path.read_bytes() == content:
                self._fd = fd
                return path
        except OSError:  # no /proc
            pass
        os.close(fd)
        return None

    def _in_folder(self, name: str, content: bytes) -> Path:
        self._folder = private_folder(f"omni-{name}-")
        path = Path(self._folder.name) / name
        make_private(path)
        path.write_bytes(content)
        return path
