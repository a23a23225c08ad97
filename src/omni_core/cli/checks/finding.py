"""The result of one check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        state: ok; warning (omni works, though not as well as it could, or only part of it); problem (it does not work).
        detail: What was found.
        cure: What to do about it; empty if ok.
    """

    check: str
    state: State
    detail: str
    cure: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return asdict(self)
