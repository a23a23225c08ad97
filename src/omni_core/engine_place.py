"""Where an engine must not be made: in the middle of loading a worker of another one.

A factory's module that makes an engine as it is imported would do so in each worker that imports it, whose workers
would import it in turn, without end. In one process the two would wait for each other's import instead.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from types import FrameType
from typing import TypeVar

from omni_core.errors import EngineError, ExecutorError, StartupError
from omni_core.timeouts import is_done_within

T = TypeVar("T")

# Set for processes that are started to be workers, and taken out by the first code of omni that runs in them. Where it
# is still set, something else than a Python interpreter was started: the program itself, once more.
STARTED_VARIABLE = "OMNI_STARTED_AS_WORKER"
_ADVICE = (
    'Put what makes the engine under `if __name__ == "__main__":`, or into a function that the program calls; or put '
    "the factory into a module of its own, which makes no engine."
)
# Seconds between two looks whether two threads wait for each other.
_LOOK_S = 0.1
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"


class _Loading:
    """What is being loaded; none of its time any more once `what` is None.

    An object, since copies of a context outlive the loading.
    """

    def __init__(self, what: str) -> None:
        self.what: str | None = what


_in_context: contextvars.ContextVar[_Loading | None] = contextvars.ContextVar("_in_context", default=None)
_importing: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("_importing", default=frozenset())


class _Process:
    """What this process is. `loading` counts for all of its threads."""

    is_worker = False
    loading: _Loading | None = None


def is_worker_process() -> bool:
    """Whether this process was started to be a worker, and belongs to no program of a user's."""
    return _Process.is_worker


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """While this lasts, `check_engine_place` refuses engines in this thread, and wherever its context goes.

    Args:
        what: What is being loaded, for the message: `model = 'pkg.mod:factory'`.
    """
    state = _Loading(what)
    token = _in_context.set(state)
    try:
        yield
    finally:
        state.what = None
        _in_context.reset(token)


@contextlib.contextmanager
def loading_in_worker_process() -> Iterator[None]:
    """Say that this process is a worker, and refuse engines in all of its threads while this lasts."""
    os.environ.pop(STARTED_VARIABLE, None)
    _Process.is_worker = True
    state = _Process.loading = _Loading("what its configuration names")
    try:
        yield
    finally:
        state.what = None


@contextlib.contextmanager
def remember_imports() -> Iterator[None]:
    """Let threads that get a copy of this context know which modules are being imported by this one."""
    token = _importing.set(half_imported())
    try:
        yield
    finally:
        _importing.reset(token)


def check_engine_place(paths: Mapping[str, str | None]) -> None:
    """Return if an engine may be made here.

    Args:
        paths: The import paths that its workers will import, by the field that names them.

    Raises:
        EngineError: A worker is being loaded here, or the module of such a path is in the middle of its own import.
    """
    if STARTED_VARIABLE in os.environ:
        raise EngineError(
            "This process was started to be a worker of an engine, and runs a program that makes an engine instead: "
            f"{os.environ[STARTED_VARIABLE]} is no Python interpreter, or makes engines as it starts (sitecustomize). "
            "Name the interpreter with multiprocessing.set_executable(path), or use executor_class='inline'."
        )
    for state in (_in_context.get(), _Process.loading):
        if state is not None and state.what is not None:
            raise EngineError(
                f"An engine is made {_body()}while a worker of another engine loads {state.what}: that would go on "
                f"without end. {_ADVICE}"
            )
    names = half_imported()
    for field, path in paths.items():
        if path is not None and path.partition(":")[0] in names:
            raise EngineError(
                f"{field} = {path!r} cannot be used {_body()}while that module is being imported: workers wait for the "
                f"end of the import, and the import for them. {_ADVICE}"
            )


def refuse_worker_processes(executor: str) -> None:
    """Refuse to start worker processes in a worker process.

    Raises:
        ExecutorError: This is one.
    """
    if _Process.is_worker:
        raise ExecutorError(
            f"An engine with executor_class = {executor!r} cannot be made in a worker process: a worker starts no "
            "workers. Use executor_class='inline' there."
        )


def half_imported() -> frozenset[str]:
    """Return the names of modules that are being imported and whose code called this, directly or not."""
    # Those of a copied context may have been imported to their end since.
    names = {name for name in _importing.get() if _is_half_imported(getattr(sys.modules.get(name), "__spec__", None))}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        spec = frame.f_globals.get("__spec__")
        if _is_half_imported(spec):
            names.add(spec.name)  # type: ignore[union-attr]
        frame = frame.f_back
    return frozenset(names)


def _is_half_imported(spec: object) -> bool:
    # The import system's own mark, by which it knows that it must wait.
    return bool(getattr(spec, "_initializing", False))


def wait_for_load(loading: Future[T], timeout_s: float, thread: int | None) -> T:
    """Return what another thread loads.

    Args:
        loading: Its future.
        timeout_s: Seconds to wait.
        thread: The identifier of that thread.

    Raises:
        StartupError: It took longer.
        EngineError: It waits for an import that this thread is in the middle of.
    """
    names = half_imported()
    deadline = time.monotonic() + timeout_s
    while True:
        left = max(0.0, deadline - time.monotonic())
        if is_done_within(loading, min(_LOOK_S, left) if names and thread is not None else left):
            return loading.result()
        if time.monotonic() >= deadline:
            raise StartupError(f"Loading the pipeline took more than startup_timeout_s = {timeout_s:g} s.")
        if thread is None:
            continue
        wanted = _awaited_import(thread)
        if wanted in names:
            raise EngineError(
                f"An engine is made {_body()}while the module {wanted!r} is being imported, and loading its pipeline "
                f"needs that module: each waits for the other. {_ADVICE}"
            )


def _awaited_import(thread: int) -> str | None:
    """Return the name of the module that a thread imports in this moment, or waits for."""
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code.co_filename == _IMPORT_SYSTEM:
        name = frame.f_locals.get("name")
        if isinstance(name, str):
            return name
        frame = frame.f_back
    return None


def _body() -> str:
    """Return whose code makes the engine, of the modules that are being imported, for messages; or nothing."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_half_imported(frame.f_globals.get("__spec__")):
            return f"in line {frame.f_lineno} of {frame.f_code.co_filename}, "
        frame = frame.f_back
    for name in sorted(half_imported()):
        return f"by {getattr(sys.modules[name], '__file__', name)}, "
    return ""
