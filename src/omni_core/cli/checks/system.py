"""What the operating system allows: open files, and room for temporary files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from omni_core.cli.checks.devices import number_of_workers
from omni_core.cli.checks.finding import Finding
from omni_core.config import OmniDiffusionConfig

# Libraries, weights and logs; and for each worker its pipes, sockets and shared memory.
_FILES, _FILES_PER_WORKER = 256, 64
_LEAST_ROOM = 64 * 2**20


def check_system(config: OmniDiffusionConfig | None) -> Iterator[Finding]:
    """Look at the limit of open files and at the temporary folder."""
    yield from _open_files(number_of_workers(config) if config is not None else 1)
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        cure = "`export TMPDIR=FOLDER`, a folder where you can write; or make room in that one"
        yield Finding("temporary files", "problem", str(error), cure)
        return
    free = shutil.disk_usage(folder).free
    detail = f"{free / 2**30:.2f} GiB free in {folder}"
    if free < _LEAST_ROOM:
        cure = f"Make room (`du -xh {folder} | sort -h | tail`), or `export TMPDIR=FOLDER` on another disk"
        yield Finding("temporary files", "warning", f"{detail}: workers may not start", cure)
    else:
        yield Finding("temporary files", "ok", detail)


def _open_files(workers: int) -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES + _FILES_PER_WORKER * workers
    if soft == resource.RLIM_INFINITY or soft >= needed:
        yield Finding("open files", "ok", f"at most {'any number' if soft == resource.RLIM_INFINITY else soft}")
        return
    wanted = max(4096, needed)
    cure = f"`ulimit -n {wanted}` before omni is started"
    if hard != resource.RLIM_INFINITY and hard < wanted:
        cure = f"`ulimit -n {wanted}`, which root must allow first (the hard limit is {hard}): LimitNOFILE, limits.conf"
    yield Finding("open files", "warning", f"at most {soft}; {workers} workers may need {needed}", cure)
