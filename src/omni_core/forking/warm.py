"""A fork server that many engines share: all of them but the first start in a fraction of a second.

An engine whose workers are forked has a server of its own, which imports torch and diffusers before its first worker
is there: seconds, at each start. A program that makes many engines, one after another or in several processes,
keeps one server for all of them::

    with warm_fork_server():
        for config in configs:
            with DiffusionEngine(config) as engine:
                ...
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omni_core.errors import StartupError
from omni_core.forking.messages import peer_of
from omni_core.forking.starter import can_fork
from omni_core.log import get_logger
from omni_core.wire.private_folder import make_private
from omni_core.wire.process_end import end_process
from omni_core.wire.start import interpreter_flags, occupy_standard_files, start_python

log = get_logger(__name__)

SERVE_MANY = "omni_core.forking.server:serve_many"
_SOCKET = "socket"
_FACTS = "server.json"
# Seconds in which a connection must be made; the server answers later, when it has imported everything.
_CONNECT_S = 5.0
# What libraries look at when they are imported, so that workers of a shared server would not heed their driver's.
_READ_AT_IMPORT = (
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DIFFUSERS_", "SAFETENSORS_", "USE_", "XDG_CACHE_"),
    *("TORCH", "PYTORCH_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_"),
    *("PYTHON", "LD_", "MALLOC_"),
)
# These begin like that, and are heeded all the same. (Some of them torch sets by itself, once something is compiled.)
_HEEDED = frozenset({"OMP_NUM_THREADS", "PYTHONPATH", "HF_TOKEN", "TORCHINDUCTOR_CACHE_DIR", "TORCH_WARM_POOL"})


class SharedServer:
    """Where a shared fork server is.

    Args:
        folder: The folder of its socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def options(self) -> dict[str, str]:
        """The `executor_options` with which an engine of any process of this user shares it."""
        return {"fork_server": str(self.folder)}

    def connect(self) -> socket.socket:
        """Return a connection to it.

        Raises:
            OSError: It is not there, or belongs to somebody else.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(_CONNECT_S)
            with _address(self.folder) as address:
                connection.connect(address)
            _, uid = peer_of(connection)
            if uid != os.geteuid():
                raise PermissionError(f"the fork server in {self.folder} runs as another user, {uid}")
        except BaseException:
            connection.close()
            raise
        return connection

    def differences(self) -> list[str]:
        """Return why workers that it forks would not be like those of a server of one's own, if they would not.

        Raises:
            OSError: It is not there.
        """
        theirs: dict[str, Any] = json.loads((self.folder / _FACTS).read_text(encoding="utf-8"))
        ours = _facts(os.environ)
        different = [name for name in ours if name != "variables" and theirs.get(name) != ours[name]]
        then, now = theirs["variables"], ours["variables"]
        return different + sorted(name for name in {*then, *now} if then.get(name) != now.get(name))


_entered: list[SharedServer] = []
_lock = threading.RLock()


@contextlib.contextmanager
def warm_fork_server() -> Iterator[SharedServer]:
    """Keep a fork server that engines share.

    Engines that this process makes meanwhile use it: `multiproc` for its workers, unless its `start_method` says
    otherwise, and `torchrun` for its launchers. Those of other processes of the same user do if they are given its
    `options`. Each worker has the environment, the folder, the `sys.path`, the umask and the cores of the engine that
    it belongs to, and ends with that. The server ends with the context, or with this process; engines that are still
    open then go on with new workers and a server of their own.

    Yields:
        The server, which need not be ready yet: engines wait for it.

    Raises:
        StartupError: There are no fork servers on this system.
    """
    if not can_fork():
        raise StartupError("Workers can be forked from a server on Linux only.")
    occupy_standard_files()
    owner = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix="omni-fork-server-"))  # for this user only
    folder.chmod(0o700)  # a umask may take rights from this user too
    lifeline, theirs = socket.socketpair()
    process = None
    server = SharedServer(folder)
    try:
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            with _address(folder) as address:
                listener.bind(address)
            (folder / _SOCKET).chmod(0o600)
            make_private(folder / _FACTS)
            listener.listen(128)
            fds = [listener.fileno(), theirs.fileno()]
            (folder / _FACTS).write_text(json.dumps(_facts(os.environ)), encoding="utf-8")
            process = start_python(SERVE_MANY, (*fds, owner, str(folder)), fds=fds, output=2)
        with _lock:
            _entered.append(server)
        yield server
    finally:
        with _lock, contextlib.suppress(ValueError):
            _entered.remove(server)
        lifeline.close()
        if os.getpid() == owner:  # and no process that it has forked
            if process is not None:
                end_process(process)
            shutil.rmtree(folder, ignore_errors=True)


def current() -> SharedServer | None:
    """Return the server of the innermost `warm_fork_server` of this process."""
    with _lock:
        return _entered[-1] if _entered else None


def connect_shared(folder: Path | None = None, *, is_required: bool = True) -> socket.socket | None:
    """Return a connection to a fork server to share with other engines, if there is one that will do.

    Args:
        folder: Of the server; None is that of the innermost `warm_fork_server` of this process.
        is_required: Whether a server in `folder` that will not do is an error. If not, a warning tells of it, as it
            always does where no folder is given.

    Raises:
        StartupError: There is none in `folder`, or it is not as one that this process would start, and it is required.
    """
    server = SharedServer(folder) if folder is not None else current()
    if server is None:
        return None
    try:
        different = server.differences()
        if not different:
            return server.connect()
    except (OSError, ValueError) as error:
        problem = f"There is no fork server to share in {server.folder}: {error}"
    else:
        problem = (
            f"The fork server in {server.folder} has not what its libraries would see here when they are imported: "
            f"different is {', '.join(different)}"
        )
    if folder is not None and is_required:
        raise StartupError(f"{problem}. Without executor_options['fork_server'] the engine starts its own processes.")
    log.warning("the shared fork server is not used: the engine starts its own processes", reason=problem)
    return None


@contextlib.contextmanager
def _address(folder: Path) -> Iterator[str]:
    """Give a short name to the socket in a folder: the address of a socket has no more than 108 bytes."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{_SOCKET}"
    finally:
        os.close(fd)


def _facts(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what a server and the drivers that use it must have in common."""
    return {
        "Python": sys.version,
        "sys.prefix": sys.prefix,
        "options of the interpreter": interpreter_flags(),
        "omni": [version("omni-core"), __file__],
        "variables": {
            name: value
            for name, value in environment.items()
            if name.startswith(_READ_AT_IMPORT) and name not in _HEEDED
        },
    }
