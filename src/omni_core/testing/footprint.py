"""What a process holds: threads, file descriptors, child processes, shared memory. Linux, by /proc.

Not by psutil: plugins that are tested with this suite need pytest alone, and psutil does not tell what a descriptor of
shared memory or of an event file is.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

_PROC = Path("/proc")
_SHM = Path("/dev/shm")  # noqa: S108  # looked at, not written to
HAS_PROC = (_PROC / "self" / "stat").exists()


@dataclass
class Footprint:
    """What this process and those that it started hold.

    Attributes:
        threads: Python threads, by number and name.
        descriptors: Open file descriptors, and what they are.
        children: Processes that descend from this one, by id and command.
        shared_memory: Entries of /dev/shm, and memory files that are mapped.
    """

    threads: dict[str, str] = field(default_factory=dict)
    descriptors: dict[str, str] = field(default_factory=dict)
    children: dict[str, str] = field(default_factory=dict)
    shared_memory: dict[str, str] = field(default_factory=dict)

    @classmethod
    def take(cls) -> Footprint:
        """Look now."""
        gc.collect()
        return cls(
            {str(thread.ident): thread.name for thread in threading.enumerate()},
            _descriptors(),
            {str(pid): command_of(pid) for pid in descendants(os.getpid())},
            _shared_memory(),
        )

    def more_than(self, before: Footprint, kind: str) -> list[str]:
        """Return what there is of a kind that was not there before, if there is more of it in all."""
        now, then = getattr(self, kind), getattr(before, kind)
        if kind == "descriptors" and len(now) <= len(then):
            return []  # the numbers and inodes of descriptors that are opened again differ
        return [f"{key} {now[key]}" for key in sorted(now.keys() - then.keys())]


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes that descend from `pid`, those that ended and were not waited for among them."""
    parents: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*"):
        stat = _stat(int(entry.name))
        if stat is not None:
            parents.setdefault(int(stat[1]), []).append(int(entry.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def identity(pid: int) -> tuple[int, str]:
    """Return a process's id and when it was started: ids are used again."""
    stat = _stat(pid)
    return pid, stat[19] if stat is not None else ""


def is_alive(process: tuple[int, str]) -> bool:
    """Return whether the process of an `identity` still runs."""
    stat = _stat(process[0])
    return stat is not None and stat[0] not in "ZX" and stat[19] == process[1]


def is_stopped(pid: int) -> bool:
    """Return whether all threads of a process are held up by a signal, or it has ended."""
    with contextlib.suppress(OSError, IndexError):
        tasks = (_PROC / str(pid) / "task").iterdir()
        return all((task / "stat").read_text().rpartition(")")[2].split()[0] in "TZX" for task in tasks)
    return True


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # Nanoseconds of each thread, where the kernel keeps them; `stat` counts in hundredths of a second.
        tasks = [(task / "schedstat").read_text().split()[0] for task in (_PROC / str(pid) / "task").iterdir()]
        return sum(map(int, tasks)) / 1e9
    stat = _stat(pid)
    return 0.0 if stat is None else (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def command_of(pid: int) -> str:
    """Return the command line of a process."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    except OSError:
        return "(ended)"


def shared_memory_entries() -> set[str]:
    """Return the names of all entries of /dev/shm."""
    return {entry.name for entry in _SHM.iterdir()} if _SHM.is_dir() else set()


def is_held_by_others(entry: str, own: set[int]) -> bool:
    """Return whether a process other than `own` has an entry of /dev/shm mapped or open: then it is not ours."""
    try:
        inode = (_SHM / entry).stat().st_ino
    except OSError:  # it is gone
        return False
    for process in _PROC.glob("[0-9]*"):
        if int(process.name) in own:
            continue
        with contextlib.suppress(OSError):
            # By its number: a semaphore is mapped under the name that it had before it got its own.
            for line in (process / "maps").read_text().splitlines():
                if str(_SHM) in line and line.split(maxsplit=5)[4] == str(inode):
                    return True
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()).startswith(str(_SHM)) and descriptor.stat().st_ino == inode:
                        return True
    return False


def _shared_memory() -> dict[str, str]:
    found = dict.fromkeys(shared_memory_entries(), "in /dev/shm")
    with contextlib.suppress(OSError):
        for line in (_PROC / "self" / "maps").read_text().splitlines():
            if "/memfd:" in line:
                inode, name = line.split(maxsplit=5)[4:6]
                found[f"{name} {inode}"] = "mapped"
    return found


def _descriptors() -> dict[str, str]:
    found = {}
    for entry in (_PROC / "self" / "fd").iterdir():
        with contextlib.suppress(OSError):
            found[entry.name] = re.sub(r"\[\d+\]", "", str(entry.readlink()))
    # The one by which this folder was read has been closed again.
    return {number: what for number, what in found.items() if not what.endswith(f"/proc/{os.getpid()}/fd")}


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third on: state, parent, …"""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ProcessLookupError):
        return None
