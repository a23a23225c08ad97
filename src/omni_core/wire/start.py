"""Starts a Python process with the import path and the environment of this one.

Both are passed as data in a file, because the size of a command line and of an environment is limited.
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

# First of all the working directory is removed: its files must not replace modules of the standard library.
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
# Maximum bytes of the environment of a new process. Systems allow at least 128 KiB for environment and arguments
# together, and for one variable.
_MOST_ENVIRONMENT = 64 << 10
_STANDARD_FILES = (0, 1, 2)


def interpreter_flags() -> list[str]:
    """Return the options of this interpreter, as `multiprocessing` passes them to its processes."""
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
    """Call a function in a new interpreter, in a new session: Ctrl-C in a terminal reaches this process only.

    The main script is not imported again, so scripts need no `if __name__ == "__main__"`.

    Args:
        function: `pkg.mod:function`.
        arguments: Its arguments, which must be valid in JSON.
        fds: File descriptors that the new process inherits, with the same numbers.
        stdin: Its standard input.
        output: Its standard output and error; None is that of this process.
        environment: Its environment; None is that of this process.

    Raises:
        StartupError: There is no interpreter.
        OSError: The process cannot be started.
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
    """Call the function of `start_python`, in the new interpreter."""
    # The parent may have changed signals: SIGCHLD must be delivered, and SIGTERM must end this process.
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
    """Return the Python interpreter for new processes: that of `multiprocessing`, which a program may set.

    Raises:
        StartupError: None is known.
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
    """Return the import path of this process, without entries that are not text, which Python ignores."""
    return [entry for entry in sys.path if isinstance(entry, str)]


def occupy_standard_files() -> None:
    """Open /dev/null for standard files that are closed.

    Otherwise sockets to workers could get the numbers 0 to 2, and text that libraries print would be sent as messages.
    """
    for fd in _STANDARD_FILES:
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, unless another thread was faster
            if opened in _STANDARD_FILES:
                os.set_inheritable(opened, True)
            else:
                os.close(opened)


def _usual_places() -> list[str]:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [os.path.join(prefix, "bin", name) for prefix in (sys.exec_prefix, sys.base_exec_prefix)]  # noqa: PTH118
    return [place for place in places if os.access(place, os.X_OK)]


def _open_memory() -> IO[bytes]:
    """Return an open temporary file, in memory if the system supports that."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("omni-start"), "w+b")
    return tempfile.TemporaryFile()


def _what_fits(variables: Mapping[str, str]) -> dict[str, str]:
    """Return as many variables as fit into the environment of a new process, the short ones first."""
    fitting: dict[str, str] = {}
    size = 0
    for name, value in sorted(variables.items(), key=lambda item: len(item[1])):
        size += len(os.fsencode(name)) + len(os.fsencode(value)) + 10  # "=", the end, and the pointer to it
        if size > _MOST_ENVIRONMENT:
            break
        fitting[name] = value
    return fitting
