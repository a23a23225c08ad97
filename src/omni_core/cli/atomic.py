"""Files that are there whole or not at all, and that take no other file's place unasked."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# Files that are being written, under their temporary names.
_unfinished: set[Path] = set()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name in the same folder, then give it its own name.

    If it raises, or is interrupted, nothing is left.

    Args:
        path: What the file is called in the end. One of that name is replaced. Missing folders are made.
        write: Gets the temporary path, which has the same ending.
    """
    with _temporary_file(path) as temporary:
        _write(temporary, write)
        temporary.replace(path)


def write_new(paths: Iterable[Path], write: Callable[[Path], object]) -> Path:
    """Do the same with the first of several names at which there is no file by the time that it is written.

    Args:
        paths: Names in one folder and with one ending; as many as are needed.
        write: As above.

    Returns:
        The name.
    """
    names = iter(paths)
    path = next(names)
    with _temporary_file(path) as temporary:
        _write(temporary, write)
        while not _give_name(temporary, path):
            path = next(names)
    return path


def remove_unfinished() -> None:
    """Remove what is being written, for a process that ends without its `finally` blocks."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # In lower case, since some writers add the ending that they know.
    temporary = path.with_name(f".omni-{secrets.token_hex(8)}{path.suffix.lower()}")
    _unfinished.add(temporary)
    try:
        temporary.touch(exist_ok=False)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


def _write(temporary: Path, write: Callable[[Path], object]) -> None:
    mode = temporary.stat().st_mode
    write(temporary)
    temporary.chmod(mode)  # safetensors makes a file of its own that only its owner can read


def _give_name(temporary: Path, path: Path) -> bool:
    """Give a file its name and return True, or return False if there is a file of that name."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: an empty file holds the name
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        try:
            temporary.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return True
