"""Values that are hard to look at, compare, copy or send, for the arguments of one request."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np


def _torch() -> Any:
    import torch  # only when a value is made: the suite is read without it

    return torch


class OddValueError(Exception):
    """What the odd values raise."""


class UnhashableText(str):
    """Text that cannot be hashed."""

    def __hash__(self) -> int:
        raise OddValueError("hash")


class IncomparableText(str):
    """Text that cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise OddValueError("eq")

    __hash__ = str.__hash__


class UnhashableFloat(float):
    """A number that cannot be hashed."""

    def __hash__(self) -> int:
        raise OddValueError("hash")


class UnhashableInt(int):
    """A whole number that cannot be hashed or compared."""

    def __hash__(self) -> int:
        raise OddValueError("hash")

    def __eq__(self, other: object) -> bool:
        raise OddValueError("eq")

    def __lt__(self, other: object) -> bool:
        raise OddValueError("lt")


class Refuses:
    """Whatever is asked of it, it raises."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise OddValueError("no")

    __eq__ = __hash__ = __bool__ = __repr__ = __str__ = __len__ = __iter__ = _refuse


class EqualToNothing:
    """An object that compares in a way of its own, as tensors do."""

    def __eq__(self, other: object) -> bool:
        raise OddValueError("eq")

    __hash__ = object.__hash__


class HasAnything:
    """An object that claims to have any attribute, and raises when it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raise."""
        raise OddValueError("called")


class Endless:
    """Something that can be iterated for ever."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 1


class RaisesWhenPickled:
    """It cannot be pickled, and says so with an exception that pickle does not know."""

    def __reduce__(self) -> Any:
        raise OddValueError("reduce")


def _raise_when_read(kind: str, spared_pid: int) -> Any:
    if os.getpid() == spared_pid:
        return None
    if kind == "exit":
        raise SystemExit(5)
    if kind == "end":
        os._exit(17)
    raise OddValueError("unpickling")


@dataclass
class RaisesWhenRead:
    """It is pickled, and cannot be unpickled in another process than this one.

    Attributes:
        kind: How that ends: by an exception, by SystemExit, or by the end of the process.
    """

    kind: str

    def __reduce__(self) -> Any:
        return _raise_when_read, (self.kind, os.getpid())


class _MetaclassThatRefuses(type):
    def __hash__(cls) -> int:
        raise OddValueError("hash")

    def __eq__(cls, other: object) -> bool:
        raise OddValueError("eq")


class OfOddMetaclass(metaclass=_MetaclassThatRefuses):
    """A class that cannot be hashed."""


class Shade(enum.IntEnum):
    """Whole numbers with names."""

    RED = 1


class Pair(collections.namedtuple("Pair", "left right")):
    """A named tuple."""


@dataclass
class Plain:
    """A dataclass with fields that are no tensors."""

    name: str = "a"
    sizes: tuple[int, ...] = (1, 2)


class ArrayLike(np.ndarray):
    """A subclass of numpy's array."""


def _holding_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _dict_holding_itself() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


ODD_VALUES: dict[str, Callable[[], Any]] = {
    "list that holds itself": _holding_itself,
    "dict that holds itself": _dict_holding_itself,
    "list 5,000 deep": lambda: _nested(5000),
    "list 200 deep": lambda: _nested(200),
    "text that cannot be hashed": lambda: UnhashableText("a"),
    "text that cannot be compared": lambda: IncomparableText("a"),
    "float that cannot be hashed": lambda: UnhashableFloat(1.5),
    "int that cannot be hashed": lambda: UnhashableInt(3),
    "object that raises": Refuses,
    "object without comparison": EqualToNothing,
    "object that has anything": HasAnything,
    "endless iterable": Endless,
    "object that cannot be pickled": RaisesWhenPickled,
    "object that raises when read": lambda: RaisesWhenRead("raise"),
    "object that exits when read": lambda: RaisesWhenRead("exit"),
    "class of an odd metaclass": lambda: OfOddMetaclass,
    "key that cannot be hashed again": lambda: {_late_key(): 1},
    "tuple as key": lambda: {(1, 2): 3, None: 4},
    "enum": lambda: Shade.RED,
    "named tuple": lambda: Pair(1, [2]),
    "dataclass": Plain,
    "ordered dict": lambda: collections.OrderedDict(b=1, a=2),
    "default dict": lambda: collections.defaultdict(list, {"a": [1]}),
    "deque": lambda: collections.deque([1, 2]),
    "generator": lambda: (number for number in range(3)),
    "lambda": lambda: lambda: 1,
    "lock": threading.Lock,
    "module": lambda: sys,
    "open file": lambda: open(os.devnull, "rb"),  # noqa: SIM115, PTH123  # it goes away with the request
    "thread": lambda: threading.Thread(target=print),
    "ellipsis": lambda: ...,
    "not implemented": lambda: NotImplemented,
    "bytes": lambda: bytes(1_000_000),
    "memory view": lambda: memoryview(bytearray(10)),
    "set": lambda: {1, "a"},
    "complex": lambda: 1j,
    "decimal": lambda: decimal.Decimal("1.5"),
    "fraction": lambda: fractions.Fraction(1, 3),
    "date": lambda: datetime.date(2026, 11, 26),
    "huge int": lambda: 10**400,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "numpy float": lambda: np.float64(1.5),
    "numpy text": lambda: np.str_("a"),
    "numpy array of objects": lambda: np.array([None, [1]], dtype=object),
    "numpy array of its own kind": lambda: np.zeros(3).view(ArrayLike),
    "numpy array of no dimension": lambda: np.array(3),
    "tensor with gradient": lambda: _torch().ones(2, requires_grad=True),
    "sparse tensor": lambda: _torch().eye(2).to_sparse(),
    "tensor without data": lambda: _torch().ones(2, device="meta"),
    "complex tensor": lambda: _torch().ones(2, dtype=_torch().complex64),
    "tensor of no elements": lambda: _torch().empty(0, 3),
    "tensor of nan": lambda: _torch().full((2,), float("nan")),
    "list of 20,000": lambda: list(range(20_000)),
    "surrogate": lambda: "\ud800",
    "nul": lambda: "a\0b",
}


class _LateKey:
    """A key that can be hashed when it is put into a dict, and never again."""

    def __init__(self) -> None:
        self.is_used = False

    def __hash__(self) -> int:
        if self.is_used:
            raise OddValueError("hash")
        self.is_used = True
        return 1


def _late_key() -> Any:
    return _LateKey()
