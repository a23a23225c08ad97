"""Unique numbers for objects."""

from __future__ import annotations

import itertools
import weakref
from typing import Any


class ObjectNumbers:
    """Gives each object a number that no other object gets. `id` values are reused after an object was freed.

    An entry stored by `id` could be found by chance for a new object, and so on one rank but not on another.
    """

    def __init__(self) -> None:
        self._next = itertools.count()
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def number(self, value: Any) -> int | None:
        """Return the number of an object; None if it has no weak references (numpy scalars, `object()`)."""
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
