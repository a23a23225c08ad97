"""The folder: who may have it, what is set right when it is opened, and what is said when it cannot be used."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_serve.jobs import JobError, JobStore, JobStoreError
from omni_serve.jobs.database import APPLICATION_ID, SCHEMA_VERSION

BOUND_S = 30.0
MP4 = {"video.mp4": ("video/mp4", b"film")}


def child(task: Callable[[], object]) -> int:
    """Run this in a forked process; return how it ended: 0, 1 for an exception, less for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # hypothesis and pytest have no thread in a lock here
        pid = os.fork()
    if pid == 0:
        try:
            task()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_two_stores_in_one_folder(open_store: Callable[..., JobStore]) -> None:
    store = open_store()
    job, _ = store.create("video", "m", {})
    with pytest.raises(JobStoreError) as refused:
        open_store()
    assert str(store.folder) in str(refused.value)
    assert f"process {os.getpid()}" in str(refused.value)
    store.close()
    assert open_store().get(job.id) == job


def test_two_processes_in_one_folder(open_store: Callable[..., JobStore], fast_path: Path) -> None:
    program = (
        "import sys, pathlib; from omni_serve.jobs import JobStore; store = JobStore(pathlib.Path(sys.argv[1]));"
        "print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(fast_path / "data")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"open\n"
            with pytest.raises(JobStoreError, match=rf"{fast_path}/data/jobs is in use .* process {other.pid}\."):
                open_store()
        finally:
            other.kill()
    open_store()  # the lock went with its process


def test_a_forked_child_does_not_hold_the_folder(open_store: Callable[..., JobStore], fast_path: Path) -> None:
    store, temporary = open_store(), open_store(data_dir=None)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:  # lives on as a worker of a killed server would
        os.close(writing)
        os.read(reading, 1)
        temporary.close()
        os._exit(0)
    try:
        assert child(open_store) == 1, "the parent still has it"
        store.close()
        open_store()
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(pid, 0)
    assert temporary.folder.is_dir(), "a child removes nothing of its parent"


def test_what_is_left_of_unfinished_writing_is_removed(open_store: Callable[..., JobStore]) -> None:
    store = open_store()
    running, done, failed = (store.create("video", "m", {}, uploads={"a.png": b"x"})[0] for _ in range(3))
    store.take(3)
    store.complete(done.id, MP4)
    store.fail(failed.id, "a", "b")
    store.close()
    files = store.folder / "files"
    kept = {path for path in files.rglob("*") if path.is_file()}
    orphan = files / ("video_" + "0" * 24)
    for path in (
        files / running.id / "outputs" / "video.mp4",
        files / running.id / "outputs" / ".b.mp4.part",
        files / running.id / "uploads" / ".a.png.part",
        files / done.id / "outputs" / "other" / "deep",
        files / failed.id / "outputs" / "video.mp4",
        orphan / "uploads" / "a.png",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left")
    (files / "notes.txt").write_text("not ours")
    store = open_store()
    assert {path for path in files.rglob("*") if path.is_file()} == kept | {files / "notes.txt"}
    assert not orphan.exists()
    assert store.requeue_unfinished() == 1
    assert [job.id for job in store.take(5)] == [running.id]
    assert store.complete(running.id, MP4) is not None


@pytest.mark.parametrize("how", ["gone", "shorter"])
def test_a_completed_job_whose_file_is_gone(open_store: Callable[..., JobStore], how: str, clock: Any) -> None:
    store = open_store(max_bytes=100)
    job, _ = store.create("video", "m", {}, uploads={"a": b"x" * 9}, idempotency=("key", "d"))
    store.take()
    done = store.complete(job.id, {"a.mp4": ("video/mp4", b"x" * 50), "b.mp4": ("video/mp4", b"y" * 9)})
    assert done is not None
    path = store.path_of(done, "b.mp4")
    store.close()
    path.unlink() if how == "gone" else os.truncate(path, 8)
    clock.now += 10
    store = open_store(max_bytes=50)
    failed = store.get(job.id)
    assert failed is not None
    assert (failed.status, failed.files) == ("failed", ())
    assert failed.error == JobError("file_missing", "Its file b.mp4 was removed from the server's disk.")
    assert (failed.completed_at, failed.expires_at) == (done.completed_at, done.expires_at)
    assert store.requeue_unfinished() == 0, "it is not done again"
    assert store.take(1) == ()
    assert store.expire() == (), "its other file is gone, and no longer counted"
    assert [path.name for path in (store.folder / "files").rglob("*")] == [job.id, "uploads", "a"]


def test_a_queued_job_whose_upload_is_gone(open_store: Callable[..., JobStore]) -> None:
    store = open_store()
    first, second = (store.create("video", "m", {}, uploads={"a.png": b"x"})[0] for _ in range(2))
    store.close()
    shutil.rmtree(store.folder / "files" / first.id)
    store = open_store()
    failed = store.get(first.id)
    assert failed is not None
    assert (failed.status, failed.error) == (
        "failed",
        JobError("file_missing", "Its file a.png was removed from the server's disk."),
    )
    assert [job.id for job in store.take(2)] == [second.id]


@pytest.mark.parametrize("what", ["text", "other", "newer", "damaged"])
def test_a_database_that_is_not_ours(open_store: Callable[..., JobStore], what: str) -> None:
    store = open_store()
    for _ in range(50):
        store.create("video", "m", {"prompt": "x" * 500}, uploads={"a": b"x"})
    store.close()
    path = store.folder / "jobs.sqlite3"
    if what == "text":
        path.write_text("Dear diary, " * 1000)
    elif what == "damaged":  # where opening would not look
        with contextlib.closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA page_size").fetchone() == (4096,)
            page = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs_by_kind'").fetchone()[0]
        with path.open("r+b") as file:
            file.seek((page - 1) * 4096)
            file.write(b"\xff" * 4096)
    else:
        with sqlite3.connect(path) as database:
            pragma = (
                f"application_id = {APPLICATION_ID + 1}" if what == "other" else f"user_version = {SCHEMA_VERSION + 1}"
            )
            database.execute(f"PRAGMA {pragma}")
        database.close()
    before = path.read_bytes()
    advice = {"text": "move this folder away", "damaged": "move this folder away"}.get(
        what, "Name another folder|omni-serve that made it"
    )
    for _ in range(2):  # the refused one has released the folder
        with pytest.raises(JobStoreError, match=advice) as refused:
            open_store()
        assert str(store.folder) in str(refused.value)
    assert path.read_bytes() == before
    assert len(os.listdir(store.folder / "files")) == 50, "nothing was removed for a database that was not read"


def test_a_folder_of_somebody_else(open_store: Callable[..., JobStore], fast_path: Path) -> None:
    theirs = fast_path / "data" / "jobs" / "files" / ("video_" + "0" * 24)
    theirs.mkdir(parents=True)
    (fast_path / "data" / "jobs" / "thesis.tex").touch()
    with pytest.raises(JobStoreError, match="thesis.tex"):
        open_store()
    assert theirs.is_dir()


def test_a_folder_that_cannot_be_made(open_store: Callable[..., JobStore], fast_path: Path) -> None:
    (fast_path / "file").touch()
    for data_dir in (fast_path / "file", fast_path / "file" / "below", Path("/proc/omni")):
        with pytest.raises(JobStoreError, match="--data-dir") as refused:
            open_store(data_dir=data_dir)
        assert str(data_dir) in str(refused.value)


@pytest.mark.parametrize("name", ["mkdir", "open", "flock"])
def test_a_folder_that_cannot_be_written(
    open_store: Callable[..., JobStore], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS if name != "flock" else errno.ENOLCK, "refused by the test")

    with monkeypatch.context() as patch:
        patch.setattr({"mkdir": "pathlib.Path.mkdir", "open": "os.open", "flock": "fcntl.flock"}[name], refuse)
        with pytest.raises(JobStoreError, match="refused by the test.*--data-dir"):
            open_store()
    open_store()


def test_a_file_that_may_not_grow(fast_path: Path) -> None:
    """The limit on the size of files stands for a full disk, for rows and files alike."""

    def fill() -> None:
        store = JobStore(fast_path / "data")
        job, _ = store.create("video", "m", {})
        store.take()
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(JobStoreError, match="Free space"):
            store.complete(job.id, {"small": ("a/b", b"x"), "large": ("a/b", b"x" * 400_000)})
        with pytest.raises(JobStoreError, match="Free space"):
            store.create("video", "m", {}, uploads={"large": b"x" * 400_000}, idempotency=("key", "d"))
        made: list[str] = []
        with pytest.raises(JobStoreError, match="Free space"):
            for _ in range(100):
                made.append(store.create("video", "m", {"prompt": "x" * 20_000}, uploads={"a": b"x"})[0].id)
        assert made
        assert sorted(os.listdir(store.folder / "files")) == sorted(made), "nothing is left of those that failed"
        assert [one.id for one in store.list(order="asc", limit=100)[0]] == [job.id, *made]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert store.complete(job.id, {"large": ("a/b", b"x" * 400_000)}) is not None
        assert store.create("video", "m", {}, idempotency=("key", "another"))[1]

    assert child(fill) == 0
    with_all = JobStore(fast_path / "data")
    assert len(with_all.list(limit=100)[0]) > 2
    with_all.close()


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(disk: Path) -> None:
    """Leave no byte."""
    with (disk / "filler").open("ab", buffering=0) as filler:
        for size in (1 << 16, 1):
            with pytest.raises(OSError, match="No space"):
                while filler.write(b"x" * size) == size:
                    pass
                raise OSError(errno.ENOSPC, "No space left")


def test_the_temporary_folder_of_a_server_that_was_killed_is_removed_by_the_next(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(fast_path))

    def die() -> None:
        store = JobStore()
        os.kill(os.getpid(), signal.SIGKILL)
        store.close()

    living = JobStore()
    assert child(die) == -signal.SIGKILL
    assert len(list(fast_path.glob("omni-serve-jobs-*"))) == 2
    another = JobStore()
    assert set(fast_path.glob("omni-serve-jobs-*")) == {living.folder, another.folder}
    for store in (living, another):
        store.close()
    assert not list(fast_path.glob("omni-serve-jobs-*"))


def test_a_full_disk(fast_path: Path) -> None:
    with small_disk(fast_path / "disk", "1280k") as disk:
        store = JobStore(disk)
        made = [store.create("video", "m", {}, uploads={"a": b"x"})[0] for _ in range(3)]
        store.take(3)
        for job in made[:2]:
            store.complete(job.id, {"a": ("a/b", b"x" * 300_000)})
        with pytest.raises(JobStoreError, match="No space left.*Free space"):
            store.complete(made[2].id, {"b": ("a/b", b"x"), "a": ("a/b", b"x" * 600_000)})
        fill(disk)
        with pytest.raises(JobStoreError, match="Free space"):
            for _ in range(100):
                store.create("video", "m", {"prompt": "x" * 4000})
        assert store.get(made[0].id) is not None, "it can be read still"
        (disk / "filler").unlink()
        assert store.delete(made[0].id)
        assert store.complete(made[2].id, {"a": ("a/b", b"x" * 300_000)}) is not None
        store.close()
        store = JobStore(disk)
        assert [job.status for job in store.list(order="asc")[0][:2]] == ["completed", "completed"]
        store.close()


@pytest.mark.parametrize("way", ["delete", "expire", "expire after a restart"])
def test_jobs_are_removed_though_the_disk_is_full(fast_path: Path, way: str) -> None:
    """SQLite has to write for that."""
    with small_disk(fast_path / "disk", "2m") as disk:
        store = JobStore(disk, expires_after_s=100)
        for _ in range(20):
            job, _ = store.create("video", "m", {"prompt": "x" * 4000})
            store.begin(job.id)
            store.complete(job.id, {"a": ("a/b", b"x" * 10_000)})
        fill(disk)
        with pytest.raises(JobStoreError, match="Free space"):
            for _ in range(100):
                store.create("video", "m", {"prompt": "x" * 4000})
        if way == "expire after a restart":
            store.close()
            fill(disk)
            store = JobStore(disk, expires_after_s=100)
        if way == "delete":
            assert all(store.delete(job.id) for job in store.list(limit=100)[0] if job.status == "completed")
        else:
            assert len(store.expire(time.time() + 1000)) == 20
        assert store.create("video", "m", {"prompt": "x" * 4000})[1]
        store.expire()
        assert (disk / "jobs" / "reserve").stat().st_size > 0, "it is there for the next time"
        store.close()
