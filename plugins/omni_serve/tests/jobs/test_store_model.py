"""Any sequence of calls, with restarts in between, compared with a plain dictionary."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from omni_serve.jobs import IdempotencyError, Job, JobError, JobStore, StoredFile, StoreFullError

DAY_S = 24 * 3600
MAX_BYTES = 120
KINDS = st.sampled_from(["video", "audio", "image"])
SIZES = st.integers(0, 70)


class StoreModel(RuleBasedStateMachine):
    """`jobs` is what the store should hold, in the order in which it was made."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.data_dir = Path(tempfile.mkdtemp())
        self.now = 1_700_000_000
        self.jobs: dict[str, Job] = {}
        self.contents: dict[str, dict[str, bytes]] = {}
        self.ended: list[str] = []
        self.keys: dict[str, tuple[str, str, int]] = {}

    @initialize()
    def open(self) -> None:
        self.store = JobStore(self.data_dir, max_bytes=MAX_BYTES, clock=lambda: self.now)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.open()
        self.store.requeue_unfinished(most_attempts=1_000)
        for job in self.jobs.values():
            if job.status == "in_progress":
                self.change(job.id, status="queued", progress=0)

    @rule()
    def open_again_without_starting(self) -> None:
        self.store.close()
        self.open()
        for job in self.jobs.values():
            if job.status == "in_progress":
                self.change(job.id, progress=0)

    @rule(seconds=st.integers(1, DAY_S))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(
        target=ids,
        kind=KINDS,
        upload=st.none() | SIZES,
        key=st.none() | st.sampled_from("ab"),
        digest=st.sampled_from("xy"),
    )
    def create(self, kind: Any, upload: int | None, key: str | None, digest: str) -> str:
        uploads = {} if upload is None else {"in.png": b"u" * upload}
        request = {"seed": len(self.jobs)}
        known = self.keys.get(key) if key is not None else None
        idempotency = None if key is None else (key, digest)
        if known is not None and self.now - known[2] < DAY_S:
            job_id, known_digest, _ = known
            if known_digest != digest:
                with pytest.raises(IdempotencyError):
                    self.store.create(kind, "m", request, uploads=uploads, idempotency=idempotency)
            else:
                found = self.store.create(kind, "m", request, uploads=uploads, idempotency=idempotency)
                assert found == (self.jobs[job_id], False)
            return job_id
        if self.unfinished_bytes() + (upload or 0) > MAX_BYTES:
            with pytest.raises(StoreFullError):
                self.store.create(kind, "m", request, uploads=uploads, idempotency=idempotency)
            return "video_none"
        job, is_new = self.store.create(kind, "m", request, uploads=uploads, idempotency=idempotency)
        assert is_new
        assert job.id not in self.jobs
        assert job == Job(job.id, kind, "queued", 0, "m", request, self.now, tuple(uploads))
        self.jobs[job.id] = job
        self.contents[job.id] = {f"uploads/{name}": content for name, content in uploads.items()}
        if key is not None:
            self.keys[key] = (job.id, digest, self.now)
        return job.id

    @rule(limit=st.integers(0, 3))
    def take(self, limit: int) -> None:
        queued = [job.id for job in self.jobs.values() if job.status == "queued"][:limit]
        for job_id in queued:
            self.change(job_id, status="in_progress")
        assert self.store.take(limit) == tuple(self.jobs[job_id] for job_id in queued)

    @rule(job_id=ids)
    def begin(self, job_id: str) -> None:
        job = self.jobs.get(job_id)
        if job is None or job.status != "queued":
            assert self.store.begin(job_id) is None
        else:
            self.change(job_id, status="in_progress")
            assert self.store.begin(job_id) == self.jobs[job_id]

    @rule(job_id=ids, percent=st.integers(0, 100))
    def progress(self, job_id: str, percent: int) -> None:
        job = self.jobs.get(job_id)
        self.store.note_progress(job_id, percent)
        # One that was running when the store was opened runs no more: it waits to be queued.
        if job is not None and job.status == "in_progress" and self.store._progress._percent.get(job_id) is not None:
            self.change(job_id, progress=max(job.progress, percent))

    @rule(job_id=ids, sizes=st.lists(SIZES, max_size=2))
    def complete(self, job_id: str, sizes: list[int]) -> None:
        files = {f"{number}.bin": ("a/b", bytes([number]) * size) for number, size in enumerate(sizes)}
        job = self.jobs.get(job_id)
        if job is None or job.status != "in_progress":
            assert self.store.complete(job_id, files) is None
        elif self.unfinished_bytes() + sum(sizes) > MAX_BYTES:
            with pytest.raises(StoreFullError):
                self.store.complete(job_id, files)
        else:
            stored = tuple(StoredFile(name, media, len(content)) for name, (media, content) in files.items())
            self.end(job_id, status="completed", files=stored, progress=100)
            self.contents[job_id] |= {f"outputs/{name}": content for name, (_, content) in files.items()}
            assert self.store.complete(job_id, files) == self.jobs[job_id]

    @rule(job_id=ids)
    def fail(self, job_id: str) -> None:
        job = self.jobs.get(job_id)
        if job is None or job.status not in ("queued", "in_progress"):
            assert self.store.fail(job_id, "c", "m") is None
        else:
            self.end(job_id, status="failed", error=JobError("c", "m"), progress=0)
            assert self.store.fail(job_id, "c", "m") == self.jobs[job_id]

    @rule(job_id=ids)
    def delete(self, job_id: str) -> None:
        assert self.store.delete(job_id) == (job_id in self.jobs)
        self.forget(job_id)

    @rule()
    def expire(self) -> None:
        expired = [job.id for job in self.jobs.values() if job.expires_at is not None and job.expires_at <= self.now]
        for job_id in expired:
            self.forget(job_id)
        made = list(self.jobs)
        for job_id in sorted(self.ended, key=lambda one: (self.jobs[one].completed_at, made.index(one))):
            if sum(map(self.bytes_of, self.jobs)) > MAX_BYTES and self.bytes_of(job_id):
                expired.append(job_id)
                self.forget(job_id)
        assert self.store.expire() == tuple(expired)
        assert sum(map(self.bytes_of, self.jobs)) <= MAX_BYTES

    @rule(kind=st.none() | KINDS, order=st.sampled_from(["asc", "desc"]), limit=st.integers(0, 4), data=st.data())
    def list(self, kind: Any, order: Any, limit: int, data: st.DataObject) -> None:
        jobs = [job for job in self.jobs.values() if kind in (None, job.kind)]
        if order == "desc":
            jobs.reverse()
        after = data.draw(st.none() | st.sampled_from([job.id for job in jobs])) if jobs else None
        if after is not None:
            jobs = jobs[[job.id for job in jobs].index(after) + 1 :]
        assert self.store.list(kind, after, limit, order) == (tuple(jobs[:limit]), len(jobs) > limit)

    @invariant()
    def the_same(self) -> None:
        if hasattr(self, "store"):
            jobs, has_more = self.store.list(limit=1000, order="asc")
            assert jobs == tuple(self.jobs.values())
            assert not has_more
            root = self.store.folder / "files"
            found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            assert found == {
                f"{job}/{name}": data for job, files in self.contents.items() for name, data in files.items()
            }
            assert {path.name for path in root.iterdir()} == {job for job, files in self.contents.items() if files}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.data_dir)

    def change(self, job_id: str, **fields: Any) -> None:
        self.jobs[job_id] = dataclasses.replace(self.jobs[job_id], **fields)

    def end(self, job_id: str, **fields: Any) -> None:
        self.change(job_id, completed_at=self.now, expires_at=self.now + DAY_S, **fields)
        self.ended.append(job_id)

    def forget(self, job_id: str) -> None:
        self.jobs.pop(job_id, None)
        self.contents.pop(job_id, None)
        self.ended = [other for other in self.ended if other != job_id]
        self.keys = {key: known for key, known in self.keys.items() if known[0] != job_id}

    def bytes_of(self, job_id: str) -> int:
        return sum(map(len, self.contents[job_id].values()))

    def unfinished_bytes(self) -> int:
        return sum(self.bytes_of(job.id) for job in self.jobs.values() if not job.has_ended)


StoreModel.TestCase.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStoreModel = StoreModel.TestCase
