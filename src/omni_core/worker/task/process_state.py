"""What belongs to the whole process and that a pipeline may change: kept apart by task, as the thread's state is.

A pipeline that sets torch's default dtype, or seeds numpy's global generator, and is suspended or leaves it so, must
not spoil the pictures of others. Values are only read while nothing has changed: that costs some 3 µs a switch.

Numpy's and Python's global generators are a task's own only in processes of omni's: in the user's process they are the
user's, whose other threads draw from them at the same time. There, of the rest only what torch computes by belongs to a
task, and only if it was the task's thread that has set it.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import os
import random
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from omni_core.error_text import described_error
from omni_core.log import get_logger

log = get_logger(__name__)

_Values = tuple[Any, ...]


class _Thread(threading.local):
    # The state that is in place in this thread.
    current: ProcessState | None = None


_thread = _Thread()


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
        self._owns_process = owns_process
        self._fields = _IN_OWN_PROCESS if owns_process else _EVERYWHERE
        # Whether this task's thread has set something, in the user's process.
        self._is_touched = False
        self._mine: _Values | None = None
        self._outside: _Values = ()
        self._generators = GlobalGenerators.seeded(seed) if owns_process else None
        self._outside_generators: GlobalGenerators | None = None
        self._outside_numpy: Any = None

    @property
    def mode(self) -> tuple[Any, ...] | None:
        """What must agree between two tasks whose denoiser calls become one; None: as the process has it."""
        return self._mine

    @property
    def is_changed(self) -> bool:
        """Whether the task has changed anything, while this state is in place."""
        return self._read() != self._outside if self._owns_process else self._is_touched or self._mine is not None

    def touch(self) -> None:
        """Take note that the task's thread sets something."""
        self._is_touched = True

    def put_in(self) -> None:
        """Make this state the process's."""
        _thread.current = self
        self._outside = self._read()
        if self._mine is not None:
            self._write(self._mine, self._outside)
        if self._generators is not None:
            self._outside_generators = GlobalGenerators.current()
            self._outside_numpy = _numpy()._bit_generator
            self._generators.put_in()

    def take_out(self) -> None:
        """Note what the state has become, and make it what it was before."""
        if self._outside_generators is not None and self._generators is not None:
            if _numpy()._bit_generator is not self._outside_numpy:
                np.random.set_bit_generator(self._outside_numpy)  # type: ignore[attr-defined]  # its own kind of generator ends with this turn
            self._generators = self._generators.changed()
            self._outside_generators.put_in()
        _thread.current = None
        if not self._owns_process and not self._is_touched and self._mine is None:
            return  # what else has changed meanwhile is another thread's
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
                try:
                    write(value)
                except Exception as error:  # a folder that is gone, say: no reason for others to fail
                    log.warning("a change that a pipeline has made cannot be put back", error=described_error(error))


_SETTERS = ("set_default_dtype", "set_float32_matmul_precision", "use_deterministic_algorithms")
_install_lock = threading.Lock()


def install_setters() -> None:
    """Let torch's setters say which task has called them, in the user's process. Once in a process."""
    with _install_lock:
        for name in _SETTERS:
            setter = getattr(torch, name)
            if not hasattr(setter, "_omni_setter"):
                setattr(torch, name, _noting(setter))


def _noting(setter: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(setter)
    def note_and_set(*args: Any, **kwargs: Any) -> Any:
        if _thread.current is not None:
            _thread.current.touch()
        return setter(*args, **kwargs)

    note_and_set._omni_setter = setter  # type: ignore[attr-defined]
    return note_and_set


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
        # With numpy's own way at first, which also forgets a normal number that somebody else has left.
        return cls(_memory_of(python), None, _memory(_numpy_address(numpy)), numpy.get_state(legacy=False))

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
            state = numpy.get_state(legacy=False)
            if state["has_gauss"]:
                now._numpy_gauss = state
                numpy.set_state({**state, "has_gauss": 0, "gauss": 0.0})
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
