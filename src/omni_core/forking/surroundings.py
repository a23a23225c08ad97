"""What a worker has from its driver and not from the process that forks it: folder, environment, where to import from.

A fork server may have been started by somebody else, or before the driver has changed its environment. So the driver
sends these along with each request for a worker, and the worker takes them over before it does anything else.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from omni_core.wire.start import import_path

# Files that hold surroundings: those of `Surroundings.fds`.
NUM_FDS = 2


class Surroundings:
    """The surroundings of this process as they are now, held in files that can be sent to another process."""

    def __init__(self) -> None:
        values = {
            "environment": dict(os.environ),
            "path": import_path(),
            "umask": _umask(),
            "cores": sorted(os.sched_getaffinity(0)),
        }
        # A file and no message: an environment can be larger than a message may be.
        self._values_fd = os.memfd_create("omni-surroundings")
        self._folder_fd = -1
        try:
            _write_all(self._values_fd, json.dumps(values).encode())
            # A file as well: the name of the folder may be gone, or be another folder's by then.
            self._folder_fd = os.open(".", os.O_PATH | os.O_DIRECTORY)
        except BaseException:
            self.close()
            raise

    @property
    def fds(self) -> list[int]:
        """The files to send."""
        return [self._values_fd, self._folder_fd]

    def close(self) -> None:
        """Close the files."""
        fds, self._values_fd, self._folder_fd = self.fds, -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def take_over(fds: list[int]) -> None:
    """Let this process have the surroundings of the one that sent them, and close the files."""
    values_fd, folder_fd = fds
    values: dict[str, Any] = json.loads(os.pread(values_fd, os.fstat(values_fd).st_size, 0))
    os.fchdir(folder_fd)
    for fd in fds:
        os.close(fd)
    os.umask(values["umask"])
    with contextlib.suppress(OSError):  # cores that this process may not use
        os.sched_setaffinity(0, values["cores"])
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ.clear()
    os.environ.update(values["environment"])
    time.tzset()
    sys.path[:] = values["path"]
    importlib.invalidate_caches()
    wanted = os.environ.get("OMP_NUM_THREADS")
    if wanted is not None and wanted != threads:
        _set_num_threads(wanted)


def _set_num_threads(wanted: str) -> None:
    """Do what torch does with `OMP_NUM_THREADS` when it is imported: that was before."""
    import torch

    with contextlib.suppress(ValueError, RuntimeError):  # no number: OpenMP ignores it as well
        torch.set_num_threads(int(wanted.partition(",")[0]))


def _umask() -> int:
    # To ask the kernel by `os.umask` is to change it for a moment, under the other threads.
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "Umask":
            return int(value, 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
