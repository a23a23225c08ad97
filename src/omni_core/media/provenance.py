"""What a file says about how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omni_core import __version__
from omni_core.request import OmniDiffusionRequest

# Facts that can be long, in the order in which they are left out where there is no room.
_LONG = ("omni_request", "negative_prompt", "prompt")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Everything needed to make a file again.

    Attributes:
        request: The request.
        files: `@FILE` for those of its `extra_args` that were loaded from files.
        model: What the pipeline was loaded from.
        pipeline: Name of the pipeline's class, if known.
        number: Which of the request's outputs it is, from 1.
        count: How many there are.
        enlarged: How many times larger it is than what the pipeline made.
    """

    request: OmniDiffusionRequest
    files: Mapping[str, Any]
    model: str
    pipeline: str | None = None
    number: int = 1
    count: int = 1
    enlarged: int = 1

    def texts(self) -> dict[str, str]:
        """Return the facts as texts by keyword."""
        request = self.request
        texts = {
            "Software": f"omni {__version__}",
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": str(request.seed),
            "model": self.model,
            "pipeline": self.pipeline,
            "omni_version": __version__,
            "omni_request": json.dumps(self._request(), ensure_ascii=False),
            "output": f"{self.number} of {self.count}" if self.count > 1 else None,
            "enlarged": str(self.enlarged) if self.enlarged > 1 else None,
        }
        return {key: text for key, text in texts.items() if text is not None}

    def json(self, most_characters: int | None = None) -> str:
        """Return the facts as JSON, in ASCII alone.

        Args:
            most_characters: What a file has room for: facts that are too long for it are left out. None leaves out
                none.
        """
        texts: dict[str, Any] = dict(self.texts())
        texts["omni_request"] = self._request()
        text = json.dumps(texts)
        for name in _LONG:
            if most_characters is None or len(text) <= most_characters:
                break
            texts.pop(name, None)
            text = json.dumps(texts)
        return text

    def _request(self) -> dict[str, Any]:
        fields = {name: value for name, value in self.request if value is not None and name != "request_id"}
        fields["extra_args"] = {**self.request.extra_args, **self.files}
        decoded: dict[str, Any] = json.loads(json.dumps(fields, default=str))
        return decoded
