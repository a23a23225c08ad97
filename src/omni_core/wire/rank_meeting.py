"""Where the ranks of a replica meet that are all on this machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from omni_core.wire.private_folder import make_private, private_folder


class RankMeeting:
    """A file that processes of this user can open, and no others. A port would be open to all of the machine.

    On Linux it has no name, and is gone with this process, however that ends: others reach it by way of this process's
    open files. Elsewhere it is one in a folder for this user alone.

    Raises:
        OSError: There is no place for it.

    Attributes:
        init_method: By which `torch.distributed` finds it.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.init_method = (self._in_memory() or self._in_folder()).as_uri()

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.cleanup()

    def _in_memory(self) -> Path | None:
        if not hasattr(os, "memfd_create"):
            return None
        fd = os.memfd_create("omni-ranks", os.MFD_CLOEXEC)
        os.fchmod(fd, 0o600)
        path = Path(f"/proc/{os.getpid()}/fd/{fd}")
        if not path.exists():  # no /proc
            os.close(fd)
            return None
        self._fd = fd
        return path

    def _in_folder(self) -> Path:
        self._folder = private_folder("omni-ranks-")
        path = Path(self._folder.name) / "store"
        make_private(path)
        return path
