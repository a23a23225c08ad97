"""Values that somebody wrote as text, in a flag or in an environment variable."""

from __future__ import annotations

import json
from typing import Any

# What people who think in Python write.
_PYTHON_WORDS = {"True": True, "False": False, "None": None}


def parse_value(text: str) -> Any:
    """Return what `text` means as JSON, or the text itself.

    Raises:
        ValueError: It begins like a JSON list, object or string, and is none.
    """
    if text.strip() in _PYTHON_WORDS:
        return _PYTHON_WORDS[text.strip()]
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{text[:20]}… is nested too deeply") from None
    except ValueError as error:
        if text.lstrip().startswith(("[", "{", '"')):
            raise ValueError(f"{text!r} begins like JSON and is not: {error}") from None
        return text
