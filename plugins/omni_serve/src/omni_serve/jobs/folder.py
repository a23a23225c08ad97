"""The folder in which jobs are kept: private to its user, and used by one server at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

from omni_serve.jobs.errors import JobStoreError, storage_errors
from omni_serve.jobs.reserve import RESERVE_NAME

DATABASE_NAME = "jobs.sqlite3"
_LOCK_NAME = "lock"
_FILES_NAME = "files"
_TEMPORARY = "omni-serve-jobs-"
_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600


class JobFolder:
    """A folder that belongs to this process until it is closed.

    With a data directory this is its subfolder `jobs`, made if it is missing, with a lock that the system releases when
    the process ends, however it ends. Without one it is a new temporary folder, which `close` removes.

    Args:
        data_dir: The data directory; None for a temporary folder.

    Attributes:
        path: The folder, mode 0700.
        files: Its subfolder for the files of jobs.
        is_durable: Whether it outlives this process.

    Raises:
        JobStoreError: The folder cannot be made or written, another server uses it, or it holds something else.
    """

    def __init__(self, data_dir: Path | None) -> None:
        self.is_durable = data_dir is not None
        self._lock: int | None = None
        self._close: Callable[[], object]
        if data_dir is None:
            with storage_errors(Path(tempfile.gettempdir())):
                _remove_ownerless(Path(tempfile.gettempdir()))
                self.path = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
                self._lock = _take_lock(self.path)
            self._close = weakref.finalize(self, _remove, self.path, self._lock, os.getpid())
        else:
            self.path = data_dir.absolute() / "jobs"
            with storage_errors(self.path):
                self.path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
                _make_private(self.path)
                _refuse_foreign(self.path)
                self._lock = _take_lock(self.path)
            self._close = weakref.finalize(self, _release, self._lock, os.getpid())
        _locked.add(self)
        self.files = self.path / _FILES_NAME
        try:
            with storage_errors(self.path):
                _make_private(self.files)
        except JobStoreError:
            self.close()
            raise

    @property
    def database(self) -> Path:
        """Path of the database."""
        return self.path / DATABASE_NAME

    def close(self) -> None:
        """Release the folder, or remove it if it is a temporary one. May be called again."""
        self._close()
        self._lock = None

    def forget_lock(self) -> None:
        """Close the copy of the lock that a forked child has; the parent still holds it."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = None


def make_private_file(path: Path) -> None:
    """Make an empty file that its owner alone can read, or take these rights from others if there is one.

    SQLite gives its further files (`-wal`, `-shm`) the rights of the database.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be made.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE))
    path.chmod(_FILE_MODE)


def _make_private(path: Path) -> None:
    path.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
    path.chmod(_DIRECTORY_MODE)


def _refuse_foreign(path: Path) -> None:
    """Refuse a folder in which somebody else keeps something: what has no row in the database would be removed."""
    names = {entry.name for entry in path.iterdir()}
    others = {
        name
        for name in names
        if name not in (_LOCK_NAME, _FILES_NAME, RESERVE_NAME) and not name.startswith(DATABASE_NAME)
    }
    if others and DATABASE_NAME not in names:
        raise JobStoreError(
            f"{path} holds no jobs but other things, such as {min(others)}. Name another folder (--data-dir)."
        )


def _take_lock(path: Path) -> int:
    lock = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
    except OSError as error:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        if error.errno == errno.EAGAIN:
            raise JobStoreError(
                f"{path} is in use by another server, process {owner}. End that one, or name another folder "
                "(--data-dir): each server needs its own."
            ) from error
        raise
    return lock


def _release(lock: int, owner: int) -> None:
    if os.getpid() == owner:
        os.close(lock)


def _remove(path: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _remove_ownerless(parent: Path) -> None:
    """Remove the temporary folders of servers that were killed: nobody has their locks any more."""
    for path in parent.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):  # it is another user's, or in use, or has no lock yet
            lock = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.stat().st_uid == os.getuid():
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


# A lock of flock(2) lives as long as any copy of its descriptor: a child that is forked and outlives a killed server
# would keep the folder locked.
_locked: weakref.WeakSet[JobFolder] = weakref.WeakSet()


def _forget_locks() -> None:
    for folder in list(_locked):
        folder.forget_lock()


os.register_at_fork(after_in_child=_forget_locks)
