"""Sending a file that may be removed while it is sent."""

from __future__ import annotations

import os
from typing import BinaryIO

from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send


class OpenedFile(FileResponse):
    """A file that was opened before, and is closed at the end. Whether it still has a name does not matter.

    Args:
        file: The file.
        media_type: Of its content.
        name: What browsers call it, without an ending.
    """

    def __init__(self, file: BinaryIO, media_type: str, *, name: str) -> None:
        self._file = file
        number = file.fileno()
        super().__init__(
            f"/dev/fd/{number}",
            media_type=media_type,
            filename=f"{name}.{media_type.partition('/')[2]}",
            stat_result=os.fstat(number),
            content_disposition_type="inline",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._file:
            await super().__call__(scope, receive, send)
