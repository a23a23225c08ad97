"""What belongs to the whole process and that a pipeline may change: kept apart by task, as the thread's state is.

A pipeline that sets torch's default dtype, or seeds numpy's global generator, and is suspended or leaves it so, must
not spoil the pictures of others. Values are only read while nothing has changed: that costs some 3 µs a switch.

Numpy's and Python's global generators are a task's own only in processes of omni's: in the user's process they are the
user's, whose other threads draw from them at the same time.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_Values = tuple[Any, ...]


def _set_gc(is_enabled: bool) -> None:
    (gc.enable if is_enabled else gc.disable)()


def _deterministic() -> tuple[bool, bool]:
    return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())


def _set_deterministic(mode: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])


def _cwd() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109  # a path object takes four times as long
    except OSError:  # it was deleted
        return None


def _set_cwd(path: str | None) -> None:
    if path is not None:
        os.chdir(path)


def _filters() -> tuple[Any, ...]:
    return tuple(warnings.filters)


def _set_filters(filters: tuple[Any, ...]) -> None:
    warnings.resetwarnings()
    warnings.filters[:] = filters  # type: ignore[index]


# How each is read and set. Those that count for pictures alone where the process is the user's, whose other threads may
# set the rest at the same time, and would find it set back.
_Field = tuple[Callable[[], Any], Callable[[Any], object]]
_EVERYWHERE: tuple[_Field, ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_deterministic, _set_deterministic),
)
_IN_OWN_PROCESS: tuple[_Field, ...] = (
    *_EVERYWHERE,
    (torch.get_num_threads, torch.set_num_threads),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (gc.isenabled, _set_gc),
    (_cwd, _set_cwd),
    (_filters, _set_filters),
    (lambda: logging.root.manager.disable, logging.disable),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
)


class ProcessState:
    """The process's state for one task. Begins as what the process has, with the generators seeded as the task's.

    Args:
        seed: Seed of the request.
        owns_process: Whether this process is omni's.
    """

    def __init__(self, seed: int, owns_process: bool) -> None:
        self._fields = _IN_OWN_PROCESS if owns_process else _EVERYWHERE
        self._mine: _Values | None = None
        self._outside: _Values = ()
        self._generators = GlobalGenerators.seeded(seed) if owns_process else None
        self._outside_generators: GlobalGenerators | None = None

    @property
    def mode(self) -> tuple[Any, ...] | None:
        """What must agree between two tasks whose denoiser calls become one; None: as the process has it."""
        return self._mine

    def put_in(self) -> None:
        """Make this state the process's."""
        self._outside = self._read()
        if self._mine is not None:
            self._write(self._mine, self._outside)
        if self._generators is not None:
            self._outside_generators = GlobalGenerators.current()
            self._generators.put_in()

    def take_out(self) -> None:
        """Note what the state has become, and make it what it was before."""
        if self._outside_generators is not None and self._generators is not None:
            self._generators = self._generators.changed()
            self._outside_generators.put_in()
        now = self._read()
        self._mine = None
        if now != self._outside:
            self._mine = now
            self._write(self._outside, now)

    def _read(self) -> _Values:
        return tuple([read() for read, _ in self._fields])

    def _write(self, values: _Values, now: _Values) -> None:
        for (_, write), value, current in zip(self._fields, values, now, strict=True):
            if value != current:
                write(value)


# --- global generators ------------------------------------------------------------------------------------------

# Bytes of a Mersenne twister: 624 numbers of 32 bits, and the place in them, in numpy's and in Python's memory alike.
_SIZE = 625 * 4
# Of a Python object, before what is its own: the count of references, and its type.
_HEAD = object.__basicsize__


class GlobalGenerators:
    """A state of numpy's and of Python's global generators.

    Their own functions take 50 to 250 µs for getting or setting the state, and this is done several times a step; so it
    is copied as memory, where a trial (`_is_copied_right`) finds that this is right.
    """

    def __init__(self, python: bytes, gauss_next: float | None, numpy: bytes, numpy_gauss: Any = None) -> None:
        self._python = python
        self._gauss_next = gauss_next
        self._numpy = numpy
        # numpy's legacy functions make normal numbers in pairs and keep the second one elsewhere.
        self._numpy_gauss = numpy_gauss

    @classmethod
    def seeded(cls, seed: int) -> GlobalGenerators | None:
        """Return the state after `random.seed(seed)` and `numpy.random.seed(seed)`; None if it cannot be copied."""
        if not _can_copy():
            return None
        python = random.Random(seed)  # noqa: S311
        numpy = np.random.RandomState(seed % 2**32)
        return cls(_memory_of(python), None, _memory(_numpy_address(numpy)))

    @classmethod
    def current(cls) -> GlobalGenerators:
        """Return the state that they have."""
        return cls(_memory_of(_python()), _python().gauss_next, _memory(_numpy_address(_numpy())))

    def put_in(self) -> None:
        """Give them this state."""
        python = _python()
        ctypes.memmove(id(python) + _HEAD, self._python, _SIZE)
        python.gauss_next = self._gauss_next
        numpy = _numpy()
        if self._numpy_gauss is not None:
            numpy.set_state(self._numpy_gauss)
        else:
            ctypes.memmove(_numpy_address(numpy), self._numpy, _SIZE)

    def changed(self) -> GlobalGenerators:
        """Return what has become of this state, and forget what numpy keeps elsewhere."""
        now = GlobalGenerators.current()
        if now._numpy != self._numpy or self._numpy_gauss is not None:
            numpy = _numpy()
            now._numpy_gauss = numpy.get_state(legacy=False)
            numpy.set_state({**now._numpy_gauss, "has_gauss": 0, "gauss": 0.0})
        return now


def _python() -> Any:
    return random._inst


def _numpy() -> Any:
    return np.random.mtrand._rand


def _numpy_address(generator: Any) -> int:
    address: int = generator._bit_generator.ctypes.state_address
    return address


def _memory(address: int) -> bytes:
    return ctypes.string_at(address, _SIZE)


def _memory_of(generator: Any) -> bytes:
    return _memory(id(generator) + _HEAD)


_trial: list[bool] = []


def _can_copy() -> bool:
    if not _trial:
        _trial.append(_is_copied_right())
    return _trial[0] and type(_numpy()._bit_generator) is np.random.MT19937


def _is_copied_right() -> bool:
    """Try copying with generators that belong to nobody."""
    if sys.implementation.name != "cpython" or random.Random.__basicsize__ < _HEAD + _SIZE:
        return False
    python, twin = random.Random(1), random.Random(2)  # noqa: S311
    numpy, other = np.random.RandomState(1), np.random.RandomState(2)
    if python.getstate()[1][:3] != tuple(np.frombuffer(_memory_of(python), np.uint32)[1:4].tolist()):
        return False
    ctypes.memmove(id(twin) + _HEAD, _memory_of(python), _SIZE)
    ctypes.memmove(_numpy_address(other), _memory(_numpy_address(numpy)), _SIZE)
    return python.getstate() == twin.getstate() and bool((numpy.randint(0, 99, 700) == other.randint(0, 99, 700)).all())
