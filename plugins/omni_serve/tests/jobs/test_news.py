"""What is told of jobs: each change once and in order, with the number of jobs by state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from omni_serve.jobs.errors import JobFailed, JobStoreError
from omni_serve.jobs.job import Job
from omni_serve.jobs.news import JobNews
from omni_serve.jobs.runner import JobRunner
from omni_serve.jobs.store import JobStore

BOUND_S = 30.0
EMPTY = {"queued": 0, "in_progress": 0, "completed": 0, "failed": 0}


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, BOUND_S))


def test_a_job_from_its_begin_to_its_expiry(open_store: Callable[..., JobStore]) -> None:
    now = [1000.0]
    store = open_store(expires_after_s=60, clock=lambda: now[0])
    told: list[tuple[str | None, str, dict[str, int]]] = []

    def tell(job_id: str | None, status: str, jobs: Mapping[str, int]) -> None:
        told.append((job_id, status, dict(jobs)))

    async def execute(job: Job, note: Callable[[int], None]) -> dict[str, tuple[str, bytes]]:
        if job.request["n"]:
            raise JobFailed("unlucky", "it was not to be")
        return {"a": ("a/b", b"made")}

    async def test() -> None:
        runner = JobRunner(store, execute, 1, expire_every_s=0.01, on_change=tell)
        await runner.start()
        try:
            await until(lambda: told)
            ids = [(await runner.add("video", "m", {"n": number}))[0].id for number in range(2)]
            await until(lambda: told[-1][1] == "failed")
            assert told[-1][2] == {**EMPTY, "completed": 1, "failed": 1}
            now[0] += 100
            await until(lambda: sum(status == "expired" for _, status, _ in told) == 2)
        finally:
            await runner.aclose()
        assert told[0] == (None, "", EMPTY)
        for job_id, end in zip(ids, ("completed", "failed"), strict=True):
            states = [status for one, status, _ in told if one == job_id]
            assert states == ["queued", "in_progress", end, "expired"]
        assert told[-1][2] == EMPTY

    run(test())


def test_jobs_of_an_earlier_server_are_told_at_the_start(open_store: Callable[..., JobStore]) -> None:
    store = open_store()
    store.create("video", "m", {})
    store.create("video", "m", {})
    told: list[tuple[str | None, Mapping[str, int]]] = []
    over = asyncio.Event()

    async def execute(job: Job, note: Callable[[int], None]) -> dict[str, tuple[str, bytes]]:
        await over.wait()
        return {}

    async def test() -> None:
        runner = JobRunner(store, execute, 1, on_change=lambda job_id, _, jobs: told.append((job_id, jobs)))
        await runner.start()
        try:
            await until(lambda: told)
            assert told[0][0] is None
            assert sum(told[0][1].values()) == 2
        finally:
            over.set()
            await runner.aclose()

    run(test())


def test_what_cannot_be_counted_is_told_with_the_last_numbers() -> None:
    told: list[tuple[str | None, Mapping[str, int]]] = []
    answers: list[Any] = [{"queued": 1}, JobStoreError("the disk is gone"), {"queued": 3}]

    async def count() -> Mapping[str, int]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def test() -> None:
        news = JobNews(count, lambda job_id, _, jobs: told.append((job_id, jobs)))
        telling = asyncio.create_task(news.run())
        for number, name in enumerate("abc", 1):
            news.note(name, "queued")
            await until(lambda number=number: len(told) == number)
        telling.cancel()
        await asyncio.wait([telling])

    run(test())
    assert told == [("a", {"queued": 1}), ("b", {"queued": 1}), ("c", {"queued": 3})]
