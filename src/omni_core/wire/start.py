"""Starting a Python process of omni's own, which has what this one has: where to import from, and the environment.

That is handed over as data: on a command line or in an environment there is room for so much only.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing.spawn
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from omni_core.engine_place import STARTED_VARIABLE
from omni_core.errors import StartupError

# Before anything else is imported: no file of the working directory may stand in for one of Python's own modules.
_CODE = """\
import sys
sys.path[:] = [entry for entry in sys.path if entry]
import json, os
with os.fdopen(int(sys.argv[1]), "rb") as file:
    told = json.load(file)
sys.path[:] = told["path"]
from omni_core.wire.start import begin
begin(told)
"""
# Bytes of the environment with which a process is started. Systems take 128 KiB at least, arguments included, for all
# of it, and no more than that for one variable.
_MOST_ENVIRONMENT = 64 << 10
_STANDARD_FILES = (0, 1, 2)


def interpreter_flags() -> list[str]:
    """Return the options that this interpreter was started with, as `multiprocessing` hands them on too."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags


def start_python(
    function: str,
    arguments: Sequence[Any],
    *,
    fds: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
    output: int | None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Call a function in a new interpreter, out of this terminal's process group: Ctrl-C is this process's to handle.

    The script's own module is not imported again, so scripts need no `if __name__ == "__main__"`.

    Args:
        function: `pkg.mod:function`.
        arguments: Its arguments, which JSON can hold.
        fds: Files that it is given besides, under their numbers.
        stdin: What it reads.
        output: Where it writes what it has to say; None is where this process does.
        environment: Its environment; None is this process's.

    Raises:
        StartupError: There is no interpreter.
        OSError: It cannot be started.
    """
    occupy_standard_files()
    python = find_interpreter()
    variables = dict(os.environ if environment is None else environment)
    told = {"path": import_path(), "environment": variables, "function": function, "arguments": list(arguments)}
    with _open_memory() as file:
        file.write(json.dumps(told).encode())
        file.flush()
        file.seek(0)
        flags = interpreter_flags()
        return subprocess.Popen(  # noqa: S603  # our own interpreter with our own code
            [python, *flags, "-c", _CODE, str(file.fileno())],
            stdin=stdin,
            stdout=output,
            stderr=output,
            pass_fds=[*fds, file.fileno()],
            env={**_what_fits(variables), STARTED_VARIABLE: python},
            start_new_session=True,
        )


def begin(told: Mapping[str, Any]) -> None:
    """Do what `start_python` was asked for, in the new interpreter."""
    # Whatever this process was started under: ends of children must be heard of, and SIGTERM must end it.
    for number in ("SIGCHLD", "SIGTERM"):
        if hasattr(signal, number):
            signal.signal(getattr(signal, number), signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.environ.clear()
    os.environ.update(told["environment"])
    time.tzset()
    sys.argv = [""]
    module, _, name = told["function"].partition(":")
    getattr(importlib.import_module(module), name)(*told["arguments"])


def find_interpreter() -> str:
    """Return the Python interpreter with which to start processes: that of `multiprocessing`, which a program may set.

    Raises:
        StartupError: There is none that is known.
    """
    chosen = os.fsdecode(multiprocessing.spawn.get_executable() or "")
    own = sys.executable or ""
    if not getattr(sys, "frozen", False):
        for candidate in (chosen, own, *_usual_places()):
            if candidate:
                return candidate
    elif chosen not in ("", own):
        return chosen
    what = f"this program was frozen into {own}" if getattr(sys, "frozen", False) else f"sys.executable is {own!r}"
    raise StartupError(
        f"Worker processes need a Python interpreter, and none is known here: {what}. Name one that has omni and its "
        "plugins, with multiprocessing.set_executable('/path/to/python'), or use executor_class='inline'."
    )


def import_path() -> list[str]:
    """Return where this process imports from. Python passes over entries that are no text, and so do the workers."""
    return [entry for entry in sys.path if isinstance(entry, str)]


def occupy_standard_files() -> None:
    """Open /dev/null in the place of standard files that are closed.

    Else sockets to workers would get their numbers, and take what libraries print there for messages.
    """
    for fd in _STANDARD_FILES:
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, unless another thread was faster
            if opened in _STANDARD_FILES:
                os.set_inheritable(opened, True)
            else:
                os.close(opened)


def _usual_places() -> list[str]:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [os.path.join(prefix, "bin", name) for prefix in (sys.exec_prefix, sys.base_exec_prefix)]  # noqa: PTH118
    return [place for place in places if os.access(place, os.X_OK)]


def _open_memory() -> IO[bytes]:
    """Return a file that needs no folder to lie in, where there is such a thing."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("omni-start"), "w+b")
    return tempfile.TemporaryFile()


def _what_fits(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which a process can be started, the short ones first; the others come as data."""
    fitting: dict[str, str] = {}
    size = 0
    for name, value in sorted(variables.items(), key=lambda item: len(item[1])):
        size += len(os.fsencode(name)) + len(os.fsencode(value)) + 10  # "=", the end, and the pointer to it
        if size > _MOST_ENVIRONMENT:
            break
        fitting[name] = value
    return fitting
