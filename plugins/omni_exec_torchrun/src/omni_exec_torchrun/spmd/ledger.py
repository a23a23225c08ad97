"""Counts and compares the requests and calls of the ranks, to detect ranks that submit different ones."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

# A request or call as text: name and value of each field.
Fields = dict[str, str]

_ADVICE = "In SPMD mode all ranks must make the same requests and the same calls, in the same order."


@dataclass(slots=True)
class _Entry:
    since: float
    fields: dict[int, Fields] = field(default_factory=dict)


class Ledger:
    """Counts the requests or calls of each rank, and compares the n-th of one rank with the n-th of the others.

    It is not thread-safe.

    Args:
        what: What is counted, in the singular, for messages.
        ranks: The ranks that are compared.
        first: Number of the first request or call.
    """

    def __init__(self, what: str, ranks: Iterable[int], first: int = 1) -> None:
        self._what = what
        self._counts = dict.fromkeys(ranks, first - 1)
        self._open: dict[int, _Entry] = {}

    def count(self, rank: int) -> int:
        """Return the number of the latest request or call of `rank`."""
        return self._counts[rank]

    def note(self, rank: int, fields: Fields) -> str | None:
        """Record the next request or call of `rank`.

        Returns:
            A message if it differs from that of another rank; None if not.
        """
        number = self._counts[rank] = self._counts[rank] + 1
        entry = self._open.setdefault(number, _Entry(time.monotonic()))
        complaint = next(
            (
                self._complaint(number, other, theirs, rank, fields)
                for other, theirs in sorted(entry.fields.items())
                if theirs != fields
            ),
            None,
        )
        entry.fields[rank] = fields
        if len(entry.fields) == len(self._counts):
            del self._open[number]
        return complaint

    def is_complete(self, number: int) -> bool:
        """Whether all ranks have reached `number`."""
        return min(self._counts.values()) >= number

    def overdue(self, timeout_s: float) -> str | None:
        """Return a message if a rank has not followed another within `timeout_s`; else None."""
        latest = time.monotonic() - timeout_s
        for number, entry in sorted(self._open.items()):
            if entry.since < latest:
                rank, fields = min(entry.fields.items())
                missing = [other for other in self._counts if other not in entry.fields]
                return (
                    f"{self._what} number {number}{_brief(fields)} came on rank {rank} but not on "
                    f"rank {', '.join(map(str, missing))} within {timeout_s:g} s. {_ADVICE}"
                )
        return None

    def _complaint(self, number: int, one: int, ones: Fields, other: int, others: Fields) -> str:
        if one > other:
            one, ones, other, others = other, others, one, ones
        differences = [
            f"{name} is {ones.get(name, 'unset')} on rank {one} and {others.get(name, 'unset')} on rank {other}"
            for name in dict.fromkeys((*ones, *others))
            if ones.get(name) != others.get(name)
        ]
        return f"{self._what} number {number} differs between the ranks: {'; '.join(differences)}. {_ADVICE}"


def _brief(fields: Fields) -> str:
    name, text = next(((name, text) for name, text in fields.items() if text != "None"), ("", ""))
    return f" ({name} = {text})" if name else ""
