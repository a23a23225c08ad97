"""Sending a file that may be removed while it is sent."""

from __future__ import annotations

import os
from typing import BinaryIO

from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from omni_serve.errors import ApiError

# What Starlette refuses by itself, in plain text.
_REFUSED = {400: "The header Range is malformed: write bytes=FIRST-LAST.", 416: "The file is shorter than that."}


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
        """Send it, or the part that was asked for."""
        with self._file:
            refused: ApiError | None = None

            async def send_in_form(message: Message) -> None:
                """Send what Starlette answers, but for its own errors in plain text."""
                nonlocal refused
                if message["type"] == "http.response.start" and message["status"] in _REFUSED:
                    headers = Headers(raw=message["headers"])
                    told = {name: headers[name] for name in ("content-range",) if name in headers}
                    status = message["status"]
                    refused = ApiError(status, _REFUSED[status], code="invalid_range", headers=told)
                elif refused is None:
                    await send(message)

            await super().__call__(scope, receive, send_in_form)
        if refused is not None:
            await refused.response()(scope, receive, send)
