"""Where the ranks of a replica meet that are all on this machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

from omni_core.wire.private_folder import make_private, private_folder


class RankMeeting:
    """A file that processes of this user can open, and no others. A port would be open to all of the machine.

    Raises:
        OSError: There is no place for it.
    """

    def __init__(self) -> None:
        self._folder = private_folder("omni-ranks-")
        store = Path(self._folder.name) / "store"
        make_private(store)
        self.init_method = store.as_uri()

    def close(self) -> None:
        """Remove it."""
        with contextlib.suppress(OSError):
            self._folder.cleanup()
