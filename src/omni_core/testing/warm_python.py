"""One process that has imported torch and diffusers, and forks a process for each program that a test runs.

A test suite that starts a hundred programs spends most of its time on importing the same libraries. Each program gets
a process of its own all the same, with its own arguments, environment, folder, and standard streams. What is not the
same as with `python PROGRAM`: which modules are imported already, and the group of processes.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import random
import runpy
import selectors
import shlex
import signal
import site
import socket
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What a program needs that makes an engine for the small model.
ENGINE = """
from omni_core.forking.import_ahead import import_classes, import_common
import_common()
import_classes(None)
import omni_core.cli.app, omni_core.engine.engine
"""
CLIENT = Path(__file__).with_name("warm_client.py")
_START_S = 120.0


class WarmPython:
    """The process, seen by the tests that use it. Close it, or leave `with`.

    Args:
        preload: Python code that imports what the programs will need.
    """

    def __init__(self, preload: str = "") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="omni-warm-")
        self._address = str(Path(self._folder.name) / "socket")
        command = [sys.executable, "-m", "omni_core.testing.warm_python", self._address, preload]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMNI_", "PYTEST_", "COV_"))}
        # It ends when its standard input does, so it does not outlive the tests, whatever ends them.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept)  # noqa: S603
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(_START_S) or not self._process.stdout.readline():
                self.close()
                raise RuntimeError(f"The warm Python did not start within {_START_S:g} s, or ended.")

    def command(self, executable: str = sys.executable) -> list[str]:
        """Return what to write instead of `python`.

        Args:
            executable: The interpreter that the program is to take itself to be run by; its packages are there, too.
        """
        settings = {} if executable == sys.executable else {"executable": executable}
        return [sys.executable, "-IS", str(CLIENT), self._address, json.dumps(settings)]

    def write_scripts(self, folder: Path, executable: str = sys.executable) -> None:
        """Write programs `python`, `python3` and `omni` that a shell finds instead of the others, into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, more in (("python", ""), ("python3", ""), ("omni", " -m omni_core")):
            script = folder / name
            script.write_text(f'#!/bin/sh\nexec {shlex.join(self.command(executable))}{more} "$@"\n', encoding="utf-8")
            script.chmod(0o755)

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> WarmPython:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass
class _Program:
    arguments: list[str]
    cwd: str
    environment: dict[str, str]
    executable: str = sys.executable
    fds: list[int] = field(default_factory=list)


def serve(address: str) -> _Program | None:
    """Fork a process for each program that is asked for, until standard input ends.

    Returns:
        In a forked process, its program; in this one None, at the end.
    """
    wakeup, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    programs: dict[int, socket.socket] = {}
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        selectors.DefaultSelector() as selector,
        wakeup,
        wake,
    ):
        listener.bind(address)
        listener.listen(64)
        for one in (0, wakeup, listener):
            selector.register(one, selectors.EVENT_READ)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            for key, _ in selector.select():
                if key.fileobj == 0:
                    for pid in programs:
                        os.kill(pid, signal.SIGKILL)
                    return None
                if key.fileobj is wakeup:
                    wakeup.recv(4096)
                    _tell_ends(programs, selector)
                elif key.fileobj is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                else:
                    program = _hear(key.fileobj, programs, selector)  # type: ignore[arg-type]
                    if program is not None:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        for connection in [entry.fileobj for entry in selector.get_map().values()]:
                            if isinstance(connection, socket.socket):
                                connection.close()
                        return program


def _hear(
    connection: socket.socket, programs: dict[int, socket.socket], selector: selectors.BaseSelector
) -> _Program | None:
    """Do what a client asks for; return the program in the process that was forked for it."""
    data, fds, _, _ = socket.recv_fds(connection, 64, 4)
    pids = [pid for pid, other in programs.items() if other is connection]
    if data == b"run":
        with open(fds.pop(), "rb") as file:  # noqa: PTH123
            file.seek(0)
            program = _Program(**json.load(file), fds=fds)
        pid = os.fork()
        if not pid:
            return program
        programs[pid] = connection
        for fd in fds:
            os.close(fd)
    elif data:
        for pid in pids:
            os.kill(pid, int(data))
    else:  # the client has gone, so it was killed
        selector.unregister(connection)
        connection.close()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    return None


def _tell_ends(programs: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while programs:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        connection = programs.pop(pid)
        with contextlib.suppress(OSError, KeyError, ValueError):
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())
            selector.unregister(connection)
        connection.close()


def become(program: _Program) -> None:
    """Make this process what `python` would be, just before it runs the program."""
    for standard, fd in enumerate(program.fds):
        os.dup2(fd, standard)
        os.close(fd)
    os.chdir(program.cwd)
    random.seed()  # or all programs would draw the same numbers
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    os.environ.clear()
    os.environ.update(program.environment)
    sys.dont_write_bytecode = bool(program.environment.get("PYTHONDONTWRITEBYTECODE"))
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        raw = io.FileIO(fd, mode, closefd=False)
        buffer: Any = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
        is_eager = fd == 2 or raw.isatty() or bool(program.environment.get("PYTHONUNBUFFERED"))
        stream = io.TextIOWrapper(
            buffer, "utf-8", "backslashreplace" if fd == 2 else "strict", None, line_buffering=is_eager
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if program.executable != sys.executable:
        sys.executable = program.executable
        root = Path(program.executable).parents[1]
        sys.prefix = sys.exec_prefix = str(root)
        before = len(sys.path)
        for packages in root.glob("lib/python*/site-packages"):
            site.addsitedir(str(packages))
        sys.path[:] = [*sys.path[before:], *sys.path[:before]]
    paths = program.environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [str(Path(path).absolute()) for path in paths if path]


def run(arguments: list[str]) -> None:
    """Run `-c CODE`, `-m MODULE` or a script, with its arguments, as the main module."""
    kind, *rest = arguments
    if kind == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        code = compile(rest[0], "<string>", "exec", dont_inherit=True)
    elif kind.startswith("-"):
        raise SystemExit(f"the warm Python knows no {kind}")
    else:
        sys.path.insert(0, str(Path(kind).absolute().parent))
        sys.argv = arguments
        main.__file__ = str(Path(kind).absolute())
        code = compile(Path(kind).read_bytes(), main.__file__, "exec", dont_inherit=True)
    exec(code, vars(main))  # noqa: S102  # the very purpose


def _main() -> None:
    address, preload = sys.argv[1:]
    # The folder that `-m` has put first, and what tests have set for themselves.
    sys.path[:] = [path for path in sys.path[1:] if path not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    exec(preload, {})  # noqa: S102  # code of the tests
    gc.freeze()
    program = serve(address)
    if program is not None:
        become(program)
        run(program.arguments)


if __name__ == "__main__":
    _main()
