"""What a pipeline, or the processor of its pictures, would open by itself: addresses, and paths of the server's files.

Processors of transformers fetch what stands in lists of any depth, and open paths. A client may not see either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omni_serve.errors import ApiError
from omni_serve.requests.bodies import is_words

_PICTURES = re.compile(r"(^|_)(image|mask|video|frame|picture|photo)s?(_|$)", re.IGNORECASE)
_ADDRESS = re.compile(r"\s*([a-z][a-z0-9+.-]*://|//|\\\\|file:|data:)", re.IGNORECASE)


def refuse_places(keywords: Mapping[str, Any]) -> None:
    """Return if no keyword of a pipeline names something to be opened, however deep it stands.

    Args:
        keywords: As a client has sent them, without the pictures that it sent along.

    Raises:
        ApiError: One does: text where pictures belong, or an address elsewhere. Words may say what they like.
    """
    for name, value in keywords.items():
        if is_words(name):
            continue
        of_pictures = _PICTURES.search(name) is not None
        for text in _texts(value):
            if of_pictures or _ADDRESS.match(text):
                raise ApiError(
                    400,
                    f"{name}: pictures are sent as files, or as data:image/png;base64,… URLs; nothing is fetched.",
                    param=name,
                    code="invalid_value",
                )


def _texts(value: Any) -> list[str]:
    found: list[str] = []
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, Mapping):
            left += [*part.keys(), *part.values()]
        elif isinstance(part, (list, tuple)):
            left += part
    return found
