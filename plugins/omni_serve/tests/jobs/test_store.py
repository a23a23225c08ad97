"""What the store promises of one job, in a folder and in memory."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_serve.jobs import (
    IdempotencyError,
    JobError,
    JobNotFoundError,
    JobStore,
    JobStoreError,
    QueueFullError,
    StoredFile,
    StoreFullError,
)
from omni_serve.jobs.files import JobFiles, check_name

DAY_S = 24 * 3600
MP4 = {"video.mp4": ("video/mp4", b"film")}
TRAVERSALS = [
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "..\\x",
    ".hidden",
    "x" * 129,
    "é.png",
    "a\n",
]


def completed(store: JobStore, content: bytes = b"film", **arguments: Any) -> str:
    job, _ = store.create("video", "m", {}, **arguments)
    assert store.begin(job.id) is not None
    assert store.complete(job.id, {"video.mp4": ("video/mp4", content)}) is not None
    return job.id


def files_of(store: JobStore) -> list[str]:
    root = store.folder / "files"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_the_way_of_a_job(store: JobStore, clock: Any) -> None:
    request = {"prompt": "a cat \ud83d", "seed": 2**64 - 1, "size": [1, 2], "n": None, "x": 0.1}
    job, is_new = store.create("video", "m", request, uploads={"first.png": b"png"}, remixed_from="video_" + "0" * 24)
    assert is_new
    assert re.fullmatch(r"video_[0-9a-f]{24}", job.id)
    assert (job.status, job.progress, job.request, job.uploads) == ("queued", 0, request, ("first.png",))
    assert (job.created_at, job.completed_at, job.expires_at) == (int(clock.now), None, None)
    assert (job.remixed_from, job.files, job.error, job.kind, job.model) == (
        "video_" + "0" * 24,
        (),
        None,
        "video",
        "m",
    )
    assert store.get(job.id) == job
    assert store.upload_path_of(job, "first.png").read_bytes() == b"png"
    store.note_progress(job.id, 10)
    assert store.get(job.id) == job, "one that is not begun has no progress"
    (taken,) = store.take(5)
    assert (taken.id, taken.status, taken.progress, taken.has_ended) == (job.id, "in_progress", 0, False)
    for percent, expected in ((10, 10), (5, 10), (70.9, 70), (float("nan"), 70), (float("inf"), 100), (-1, 100)):
        store.note_progress(job.id, percent)
        assert (found := store.get(job.id)) is not None
        assert found.progress == expected
    clock.now += 9.7
    done = store.complete(job.id, MP4)
    assert done is not None
    assert store.get(job.id) == done
    assert (done.status, done.progress, done.has_ended) == ("completed", 100, True)
    assert done.files == (StoredFile("video.mp4", "video/mp4", 4),)
    assert (done.completed_at, done.expires_at) == (int(clock.now), int(clock.now) + DAY_S)
    assert store.path_of(done, "video.mp4").read_bytes() == b"film"
    assert store.complete(job.id, MP4) is None
    assert store.fail(job.id, "a", "b") is None
    assert store.begin(job.id) is None
    assert store.get(job.id) == done
    assert store.path_of(done, "video.mp4").read_bytes() == b"film", "the second one changed nothing"
    assert store.delete(job.id)
    assert not store.delete(job.id)
    assert store.get(job.id) is None
    assert files_of(store) == []


def test_a_job_that_fails(store: JobStore, clock: Any) -> None:
    job, _ = store.create("audio", "m", {})
    store.take()
    store.note_progress(job.id, 50)
    failed = store.fail(job.id, "server_error", "broken \udcff")
    assert failed is not None
    assert (failed.status, failed.progress) == ("failed", 0)
    assert failed.error == JobError("server_error", "broken \udcff")
    assert failed.expires_at == int(clock.now) + DAY_S
    assert store.get(job.id) == failed
    assert store.complete(job.id, MP4) is None
    assert files_of(store) == []


@pytest.mark.parametrize("name", TRAVERSALS)
def test_names_that_lead_elsewhere(store: JobStore, name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        store.create("image", "m", {}, uploads={"fine.png": b"", name: b"x"})
    assert store.list() == ((), False)
    assert files_of(store) == []
    job = store.get(completed(store))
    assert job is not None
    running, _ = store.create("image", "m", {})
    store.begin(running.id)
    with pytest.raises(ValueError, match="no name"):
        store.complete(running.id, {"fine.png": ("a/b", b""), name: ("a/b", b"x")})
    assert (now := store.get(running.id)) is not None
    assert now.status == "in_progress", "unchanged"
    for paths in (store.path_of, store.upload_path_of):
        with pytest.raises(JobNotFoundError):
            paths(job, name)
    assert files_of(store) == [job.id, f"{job.id}/outputs", f"{job.id}/outputs/video.mp4"]


@given(name=st.text(max_size=12) | st.from_regex(r"[./\\a]{1,6}", fullmatch=True), job=st.text(max_size=40))
def test_no_path_is_outside(name: str, job: str) -> None:
    root = Path("/root-of-all")
    files = JobFiles(root, is_durable=True)
    for job_id in (job, "video_" + "0" * 24):
        try:
            path = files.path(job_id, "outputs", name)
        except ValueError:
            continue
        assert os.path.normpath(path) == str(path)
        assert path.parent.parent.parent == root
        check_name(name)


def test_ids_that_are_none(store: JobStore) -> None:
    for job_id in ("", "../..", "video_", "x' OR '1'='1", "video_" + "G" * 24, "%"):
        assert store.get(job_id) is None
        assert not store.delete(job_id)
        assert store.begin(job_id) is None
        assert store.complete(job_id, MP4) is None
        assert store.fail(job_id, "a", "b") is None
    assert files_of(store) == []


def test_requests_that_are_not_json_leave_nothing(store: JobStore) -> None:
    for request in ({"a": float("nan")}, {"a": b""}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            store.create("image", "m", request, uploads={"a.png": b"x"})
    with pytest.raises(ValueError, match="surrogates"):
        store.create("image", "\ud800", {}, uploads={"a.png": b"x"})
    assert store.list() == ((), False)
    assert files_of(store) == []
    assert store.create("image", "m", {})[1], "the transaction has ended"


def test_a_result_is_copied_from_a_file(store: JobStore, fast_path: Path) -> None:
    source = fast_path / "large"
    source.write_bytes(os.urandom(3_000_000))
    job, _ = store.create("video", "m", {})
    store.take()
    with pytest.raises(JobStoreError, match="nothing-there"):
        store.complete(job.id, {"a.mp4": ("video/mp4", source), "b.mp4": ("video/mp4", fast_path / "nothing-there")})
    assert files_of(store) == []
    done = store.complete(job.id, {"a.mp4": ("video/mp4", source), "empty": ("text/plain", b"")})
    assert done is not None
    assert [file.size_bytes for file in done.files] == [3_000_000, 0]
    assert store.path_of(done, "a.mp4").read_bytes() == source.read_bytes()


def test_pages_of_a_list(store: JobStore) -> None:
    kinds = ["video", "audio", "video", "video", "image", "video"]
    ids = [store.create(kind, "m", {})[0].id for kind in kinds]  # all of the same second
    videos = [job_id for job_id in ids if job_id.startswith("video")]
    for kind, expected in ((None, ids), ("video", videos)):
        for order in ("asc", "desc"):
            wanted = expected if order == "asc" else expected[::-1]
            for limit in (1, 2, 4, 100):
                found: list[str] = []
                after, has_more = None, True
                while has_more:
                    jobs, has_more = store.list(kind, after, limit, order)
                    assert len(jobs) == limit or not has_more
                    found += [job.id for job in jobs]
                    after = found[-1]
                assert found == wanted
    assert store.list(limit=0) == ((), True)
    assert store.list("audio", limit=0) == ((), True)
    assert store.list("audio", after=ids[1]) == ((), False)
    with pytest.raises(JobNotFoundError):
        store.list("audio", after=ids[0])
    store.delete(ids[0])
    with pytest.raises(JobNotFoundError):
        store.list(after=ids[0])
    with pytest.raises(ValueError, match="limit"):
        store.list(limit=-1)


def test_no_job_is_begun_twice(store: JobStore) -> None:
    ids = [store.create("image", "m", {})[0].id for _ in range(60)]
    barrier = threading.Barrier(6)

    def take(number: int) -> list[str]:
        barrier.wait(10)
        mine: list[str] = []
        if number % 2:
            while jobs := store.take(2):
                mine += [job.id for job in jobs]
            return mine
        return [job_id for job_id in ids if store.begin(job_id) is not None]

    with ThreadPoolExecutor(6) as pool:
        taken = [job_id for mine in pool.map(take, range(6)) for job_id in mine]
    assert sorted(taken) == sorted(ids)
    assert store.take(0) == store.take(-1) == ()


def test_an_idempotency_key(open_store: Callable[..., JobStore], clock: Any) -> None:
    store = open_store()
    first, is_new = store.create("video", "m", {"seed": 1}, idempotency=("key", "digest"), uploads={"a.png": b"x"})
    assert is_new
    before = files_of(store)
    assert store.create("video", "m", {"seed": 2}, idempotency=("key", "digest"), uploads={"a.png": b"x"}) == (
        first,
        False,
    )
    assert store.create("video", "m", {"seed": 2}, idempotency=("other", "digest"))[1]
    store.close()
    store = open_store()
    assert store.create("video", "m", {}, idempotency=("key", "digest"), uploads={"b.png": b"y"}) == (first, False)
    with pytest.raises(IdempotencyError, match="'key'"):
        store.create("video", "m", {}, idempotency=("key", "another"), uploads={"b.png": b"y"})
    assert files_of(store) == before
    store.begin(first.id)
    done = store.complete(first.id, MP4)
    assert store.create("video", "m", {}, idempotency=("key", "digest")) == (done, False)
    clock.now += DAY_S - 1
    assert store.create("video", "m", {}, idempotency=("key", "digest")) == (done, False)
    clock.now += 1
    again, is_new = store.create("video", "m", {}, idempotency=("key", "another"))
    assert is_new
    assert again.id != first.id
    assert store.delete(again.id)
    assert store.create("video", "m", {}, idempotency=("key", "third"))[1], "a key goes with its job"


def test_a_race_of_one_idempotency_key(store: JobStore) -> None:
    for round_ in range(8):
        barrier = threading.Barrier(4)

        def create(number: int, key: str = f"key {round_}", barrier: threading.Barrier = barrier) -> tuple[str, bool]:
            barrier.wait(10)
            job, is_new = store.create("image", "m", {"n": number}, uploads={"a": b"x"}, idempotency=(key, "d"))
            return job.id, is_new

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(create, range(4)))
        assert len({job_id for job_id, _ in answers}) == 1
        assert sum(is_new for _, is_new in answers) == 1
    assert len(store.list(limit=100)[0]) == 8
    assert len(os.listdir(store.folder / "files")) == 8, "those that lost the race left no uploads"


def test_jobs_expire(store: JobStore, clock: Any) -> None:
    first = completed(store, uploads={"a.png": b"x"})
    clock.now += 10
    failed, _ = store.create("audio", "m", {})
    store.begin(failed.id)
    store.fail(failed.id, "a", "b")
    running, queued = (store.create("audio", "m", {}, uploads={"a.wav": b"x"})[0].id for _ in range(2))
    store.begin(running)
    clock.now += DAY_S - 10 - 1
    assert store.expire() == ()
    clock.now += 1
    assert store.expire() == (first,)
    assert store.expire() == ()
    assert store.get(first) is None
    assert store.expire(clock.now + 10) == (failed.id,)
    assert store.expire(clock.now + 1e9) == (), "what has not ended stays"
    assert sorted(os.listdir(store.folder / "files")) == sorted([running, queued])


def test_without_expiry(open_store: Callable[..., JobStore], clock: Any) -> None:
    store = open_store(expires_after_s=None)
    job = store.get(completed(store))
    assert job is not None
    assert job.expires_at is None
    assert store.expire(clock.now + 1e12) == ()


def test_the_cap_in_bytes(open_store: Callable[..., JobStore], clock: Any) -> None:
    store = open_store(max_bytes=100)
    late, _ = store.create("video", "m", {})  # made first, completed last
    ids = []
    for _ in range(3):
        clock.now += 1
        ids.append(completed(store, b"x" * 30, uploads={"a.png": b"y" * 3}))
    assert store.expire() == ()
    empty, _ = store.create("video", "m", {})
    store.begin(empty.id)
    store.fail(empty.id, "a", "b")
    clock.now += 1
    store.begin(late.id)
    store.complete(late.id, {"a": ("a/b", b"x" * 40)})
    assert store.expire() == (ids[0], ids[1]), "those that ended first"
    assert store.get(empty.id) is not None, "to remove it would free nothing"
    assert sum(path.stat().st_size for path in (store.folder / "files").rglob("*") if path.is_file()) == 73


def test_what_has_no_room_is_refused(open_store: Callable[..., JobStore]) -> None:
    store = open_store(max_bytes=100)
    old = completed(store, b"x" * 90)
    waiting, _ = store.create("video", "m", {}, uploads={"a": b"y" * 60})
    assert store.expire() == (old,)
    with pytest.raises(JobStoreError, match="60 of 100 bytes"):
        store.create("video", "m", {}, uploads={"a": b"y" * 41})
    running, _ = store.create("video", "m", {}, uploads={"a": b"y" * 40})
    store.begin(running.id)
    with pytest.raises(JobStoreError, match="1 bytes do not fit"):
        store.complete(running.id, {"a": ("a/b", b"z")})
    assert files_of(store) == sorted(
        part for job in (waiting.id, running.id) for part in (job, f"{job}/uploads", f"{job}/uploads/a")
    )
    store.delete(waiting.id)
    assert store.complete(running.id, {"a": ("a/b", b"z" * 60)}) is not None
    assert store.expire() == ()


def test_a_job_that_is_deleted_while_its_results_are_written(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write = JobFiles.write
    for moment in ("before", "after"):
        job, _ = store.create("video", "m", {}, uploads={"a": b"x"})
        store.begin(job.id)

        def deleting(self: JobFiles, job_id: str, *rest: Any, moment: str = moment) -> dict[str, int]:
            if moment == "before":
                store.delete(job_id)
            sizes = write(self, job_id, *rest)
            store.delete(job_id)
            return sizes

        with monkeypatch.context() as patch:
            patch.setattr(JobFiles, "write", deleting)
            assert store.complete(job.id, MP4) is None
        assert store.get(job.id) is None
        assert files_of(store) == []


def test_a_folder_that_goes_while_results_are_written(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = store.create("video", "m", {})
    store.begin(job.id)

    def deleting(path: Path, target: Path) -> Path:
        store.delete(job.id)
        raise FileNotFoundError(str(path))

    monkeypatch.setattr(Path, "replace", deleting)
    assert store.complete(job.id, MP4) is None, "it was deleted: that is no error"


def test_many_threads_that_delete_what_others_complete(store: JobStore) -> None:
    ids = [store.create("video", "m", {}, uploads={"a": b"x"})[0].id for _ in range(40)]
    store.take(40)
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait(10)
        for job_id in ids:
            if number < 2:
                store.complete(job_id, MP4)
            else:
                store.delete(job_id)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert store.list() == ((), False)
    assert files_of(store) == []


def test_everything_is_private(open_store: Callable[..., JobStore], fast_path: Path) -> None:
    old = os.umask(0)
    try:
        store = open_store()
        completed(store, uploads={"a.png": b"x"})
        paths = [store.folder.parent, store.folder, *store.folder.rglob("*")]
        for path in paths:
            expected = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == expected, path
        assert {"jobs.sqlite3", "jobs.sqlite3-wal", "lock"} <= {path.name for path in paths}
        assert stat.S_IMODE(open_store(data_dir=None).folder.stat().st_mode) == 0o700
    finally:
        os.umask(old)


def test_files_are_synced_before_the_row_that_names_them(
    open_store: Callable[..., JobStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL cannot show this: what a killed process has written is there, and after a loss of power it may not be."""
    store = open_store()
    root = store.folder / "files"
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append(f"sync {path.relative_to(root)}")
        fsync(descriptor)

    def watched_replace(path: Path, target: Path) -> Path:
        assert not target.exists()
        steps.append(f"rename {path.relative_to(root)} {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    store._database.set_trace_callback(lambda text: steps.append(text) if text == "COMMIT" else None)
    job, _ = store.create("video", "m", {}, uploads={"in": b"x"})
    assert steps == [
        "sync .",
        f"sync {job.id}",
        f"sync {job.id}/uploads/.in.part",
        f"rename {job.id}/uploads/.in.part in",
        f"sync {job.id}/uploads",
        "COMMIT",
    ]
    store.take()
    steps.clear()
    store.complete(job.id, {"a": ("a/b", b"x"), "b": ("a/b", b"y")})
    assert steps[-7:] == [
        f"sync {job.id}",
        f"sync {job.id}/outputs/.a.part",
        f"rename {job.id}/outputs/.a.part a",
        f"sync {job.id}/outputs/.b.part",
        f"rename {job.id}/outputs/.b.part b",
        f"sync {job.id}/outputs",
        "COMMIT",
    ]
    pragmas = [store._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 2]


def test_what_is_in_memory_leaves_nothing(open_store: Callable[..., JobStore]) -> None:
    store = open_store(data_dir=None)
    completed(store)
    assert store.folder.is_dir()
    store.close()
    store.close()
    assert not store.folder.exists()
    with pytest.raises(JobStoreError, match="closed"):
        store.get("x")


def test_a_job_of_which_the_server_dies_is_given_up(store: JobStore) -> None:
    poison, _ = store.create("video", "m", {})
    other, _ = store.create("video", "m", {})
    for attempt in range(3):
        assert [job.id for job in store.take()] == [poison.id], attempt
        store.requeue_unfinished(most_attempts=3)
    failed = store.get(poison.id)
    assert failed is not None
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "server_died")
    assert [job.id for job in store.take()] == [other.id]


def test_an_orderly_end_is_no_attempt(store: JobStore) -> None:
    job, _ = store.create("video", "m", {})
    for _ in range(10):
        assert [taken.id for taken in store.take()] == [job.id]
        assert store.give_back() == 1
    assert store.requeue_unfinished(most_attempts=1) == 0
    assert store.num_unfinished() == 1


def test_files_that_are_made_already(open_store: Callable[..., JobStore], clock: Any) -> None:
    store = open_store(expires_after_s=10, max_bytes=100)
    job = store.keep("image", "m", {"prompt": "x"}, {"picture": ("image/png", b"p" * 60)})
    assert (job.status, job.files[0].size_bytes, job.expires_at) == ("completed", 60, clock.now + 10)
    assert store.path_of(job, "picture").read_bytes() == b"p" * 60
    assert store.take() == ()
    with pytest.raises(StoreFullError):
        store.keep("image", "m", {}, {"picture": ("image/png", b"p" * 101)})
    newer = store.keep("image", "m", {}, {"picture": ("image/png", b"q" * 60)})
    assert store.expire() == (job.id,)
    clock.now += 11
    assert store.expire() == (newer.id,)


def test_a_full_queue_refuses_what_is_new_alone(open_store: Callable[..., JobStore]) -> None:
    store = open_store(max_unfinished=2)
    first, _ = store.create("video", "m", {}, idempotency=("key", "digest"))
    store.create("video", "m", {})
    with pytest.raises(QueueFullError, match="2 jobs wait"):
        store.create("video", "m", {})
    assert store.create("video", "m", {}, idempotency=("key", "digest")) == (first, False)
    store.fail(first.id, "x", "x")
    assert store.create("video", "m", {})[1]
