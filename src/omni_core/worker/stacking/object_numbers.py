"""Numbers by which objects are recognised."""

from __future__ import annotations

import itertools
import weakref
from typing import Any


class ObjectNumbers:
    """Gives each object a number that no other object ever gets, unlike `id`, which is used again.

    What is remembered by `id` may be found for an object that has since taken the place of another: by chance, and so
    on one rank and not on the next.
    """

    def __init__(self) -> None:
        self._next = itertools.count()
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def number(self, value: Any) -> int | None:
        """Return the object's number, or None if it cannot be recognised again (numpy's scalars, `object()`)."""
        key = id(value)
        known = self._known.get(key)
        if known is not None and known[1]() is value:
            return known[0]
        number = next(self._next)

        def forget(_ref: Any) -> None:
            if (found := self._known.get(key)) is not None and found[0] == number:
                del self._known[key]

        try:
            self._known[key] = (number, weakref.ref(value, forget))
        except TypeError:
            return None
        return number
