"""The files of jobs. A file has its name only once all of it is on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

from omni_core.log import get_logger
from omni_serve.jobs.job import is_job_id

FileContent = bytes | Path
"""A file's bytes, or a file to copy them from."""

Group = Literal["uploads", "outputs"]

log = get_logger(__name__)

# Also the longest name: with what the temporary name adds it stays below the 255 bytes of most file systems.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_COPY_BYTES = 1 << 20
_REMOVALS = 3  # attempts
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)  # a file system whose folders are not synced one by one


def check_name(name: str) -> None:
    """Refuse a name that is not plain: letters, digits and `_ - .`, no dot in front, 128 characters at most.

    Raises:
        ValueError: It is not.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no name for a file of a job: take letters, digits, '_', '-' and '.'.")


def size_of(content: FileContent) -> int:
    """Return the size of a file that is to be written, in bytes."""
    return content.stat().st_size if isinstance(content, Path) else len(content)


class JobFiles:
    """Writes, finds and removes files, each job's in a folder of its own, mode 0700, and each file with mode 0600.

    A file is written under a temporary name in its folder, synced, renamed, and its folder is synced: after `write` it
    is on the disk whole, whatever happens to process or power.

    Args:
        root: The folder of all jobs' folders. It exists.
        is_durable: False leaves out the syncing, for files that do not outlive the process.
    """

    def __init__(self, root: Path, is_durable: bool) -> None:
        self._root = root
        self._is_durable = is_durable

    def path(self, job_id: str, group: Group, name: str) -> Path:
        """Return where a file is, or would be. It is always below the root.

        Raises:
            ValueError: The id or the name is none.
        """
        if not is_job_id(job_id):
            raise ValueError(f"{job_id!r} is no id of a job")
        check_name(name)
        return self._root / job_id / group / name

    def size(self, job_id: str, group: Group, name: str) -> int | None:
        """Return the size of a file in bytes, or None if there is none."""
        try:
            return self.path(job_id, group, name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, job_id: str, group: Group, contents: Mapping[str, FileContent]) -> dict[str, int]:
        """Write files.

        Args:
            job_id: Whose.
            group: Whether they came with the request or are results.
            contents: By their names.

        Returns:
            Their sizes in bytes.

        Raises:
            ValueError: A name is none; nothing was written.
            OSError: A file could not be written; others may have been.
        """
        paths = {name: self.path(job_id, group, name) for name in contents}
        if not paths:
            return {}
        folder = self._root / job_id / group
        for new in (folder.parent, folder):
            new.mkdir(mode=0o700, exist_ok=True)
            self._sync_folder(new.parent)
        sizes = {name: self._write_file(paths[name], content) for name, content in contents.items()}
        self._sync_folder(folder)
        return sizes

    def remove(self, job_id: str, group: Group | None = None) -> None:
        """Remove the files of a job, if there are any.

        What cannot be removed is named in the log; it is tried again when the store is next opened.

        Args:
            job_id: Whose.
            group: Which; None for all.
        """
        if not is_job_id(job_id):
            return
        folder = self._root / job_id
        _remove(folder if group is None else folder / group)
        with contextlib.suppress(OSError):
            folder.rmdir()  # unless something is left in it

    def sweep(self, known: Mapping[str, Mapping[Group, frozenset[str]]]) -> int:
        """Remove whatever no job has: of a job that is gone, or of a writing that did not end.

        Args:
            known: The names of the files to keep, by job and group.

        Returns:
            How many files and folders were removed.
        """
        orphans = list(self._orphans(known))
        for path in orphans:
            _remove(path)
        return len(orphans)

    def _orphans(self, known: Mapping[str, Mapping[Group, frozenset[str]]]) -> Iterator[Path]:
        for job in self._root.iterdir():
            if not is_job_id(job.name):  # nothing that omni has put there
                continue
            groups = {str(group): names for group, names in known.get(job.name, {}).items() if names}
            if not groups:
                yield job
                continue
            for folder in job.iterdir():
                names = groups.get(folder.name)
                if names is None:
                    yield folder
                else:
                    yield from (path for path in folder.iterdir() if path.name not in names)

    def _write_file(self, path: Path, content: FileContent) -> int:
        temporary = path.with_name(f".{path.name}.part")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                _fill(file, content)
                file.flush()
                if self._is_durable:
                    os.fsync(file.fileno())
                size = file.tell()
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        return size

    def _sync_folder(self, folder: Path) -> None:
        if not self._is_durable:
            return
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _CANNOT_SYNC:
                raise
        finally:
            os.close(descriptor)


def _fill(file: BinaryIO, content: FileContent) -> None:
    if isinstance(content, Path):
        with content.open("rb") as source:
            shutil.copyfileobj(source, file, _COPY_BYTES)
    else:
        file.write(content)


def _remove(path: Path) -> None:
    for _ in range(_REMOVALS):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        except OSError as error:  # or another thread writes or removes something in it at this moment
            reason = str(error)
    log.warning("a file of a job could not be removed", path=str(path), reason=reason)
