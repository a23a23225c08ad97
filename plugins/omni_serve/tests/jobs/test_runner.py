"""The runner: order, limit, ends of every kind, and stopping."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from omni_core.serial_thread import SerialThread
from omni_serve.jobs import Job, JobError, JobFailed, JobRunner, JobStore, JobStoreError

BOUND_S = 20.0


class Work:
    """An `execute` whose jobs go on when the test says so. `ends` has the future that each waits for, by its number."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self.ends: dict[int, asyncio.Future[Any]] = {}
        self.progress: dict[int, Callable[[int], None]] = {}
        self.most_at_once = self.at_once = 0

    async def __call__(self, job: Job, progress: Callable[[int], None]) -> dict[str, tuple[str, bytes]]:
        number = job.request["n"]
        self.begun.append(number)
        self.ends[number] = asyncio.get_running_loop().create_future()
        self.progress[number] = progress
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            result = await self.ends[number]
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        finally:
            self.at_once -= 1
        return {"a": ("a/b", b"result %d" % number)} if result is None else result

    def end(self, number: int, result: Any = None) -> None:
        future = self.ends.pop(number)
        future.set_exception(result) if isinstance(result, BaseException) else future.set_result(result)


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test, BOUND_S)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, "each task has an owner that ends it"

    asyncio.run(bounded())
    assert not [thread for thread in threading.enumerate() if thread.name == "omni-jobs"]


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def running(store: JobStore, work: Any, limit: int = 2, **options: Any) -> AsyncIterator[JobRunner]:
    runner = JobRunner(store, work, limit, **options)
    await runner.start()
    try:
        yield runner
    finally:
        await runner.aclose()


async def add(runner: JobRunner, *numbers: int) -> list[str]:
    return [(await runner.add("video", "m", {"n": number}))[0].id for number in numbers]


def status(store: JobStore, job_id: str) -> str | None:
    job = store.get(job_id)
    return None if job is None else job.status


def test_jobs_run_in_order_and_so_many_at_a_time(store: JobStore) -> None:
    async def test() -> None:
        work = Work()
        async with running(store, work, limit=3) as runner:
            ids = await add(runner, *range(10))
            for number in range(10):
                await until(lambda number=number: len(work.begun) == min(10, number + 3))
                assert [status(store, job_id) for job_id in ids[number + 3 :]] == ["queued"] * max(0, 7 - number)
                assert runner.num_running <= 3
                work.end(number)
            await until(lambda: runner.num_running == 0)
            assert work.begun == list(range(10))
            assert work.most_at_once == 3
            for number, job_id in enumerate(ids):
                job = store.get(job_id)
                assert job is not None
                assert job.status == "completed"
                assert store.path_of(job, "a").read_bytes() == b"result %d" % number

    run(test())


def test_progress_is_seen(store: JobStore) -> None:
    async def test() -> None:
        work = Work()
        async with running(store, work) as runner:
            (job_id,) = await add(runner, 1)
            await until(lambda: work.begun)
            work.progress[1](40)
            await asyncio.to_thread(work.progress[1], 60)
            job = store.get(job_id)
            assert job is not None
            assert (job.status, job.progress) == ("in_progress", 60)
            work.end(1)
            await until(lambda: status(store, job_id) == "completed")
            work.progress[1](10)
            assert (job := store.get(job_id)) is not None
            assert job.progress == 100

    run(test())


def test_an_idle_runner_asks_nothing(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        work = Work()
        async with running(store, work) as runner:
            await add(runner, 1, 2)
            await until(lambda: len(work.begun) == 2)
            await until(lambda: not runner._wake.is_set())
            calls: list[str] = []
            submit = SerialThread.submit
            monkeypatch.setattr(SerialThread, "submit", lambda *args: calls.append(args[1].__name__) or submit(*args))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.3)
            assert calls == []
            monkeypatch.undo()
            work.end(1)
            work.end(2)

    run(test())


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (
            JobFailed("moderation_blocked", "Ask for something else."),
            JobError("moderation_blocked", "Ask for something else."),
        ),
        (RuntimeError("/secret/path"), None),
        (asyncio.CancelledError(), None),
        ("no dictionary", None),
        ({"../../etc/passwd": ("a/b", b"")}, None),
        ({"a": ("a/b", "no bytes")}, None),
    ],
)
def test_a_job_that_fails(
    store: JobStore, caplog: pytest.LogCaptureFixture, result: Any, error: JobError | None
) -> None:
    async def test() -> None:
        work = Work()
        async with running(store, work, limit=1) as runner:
            bad, good = await add(runner, 1, 2)
            await until(lambda: work.begun)
            work.end(1, result)
            await until(lambda: work.begun == [1, 2])
            work.end(2)
            await until(lambda: status(store, good) == "completed")
            job = store.get(bad)
            assert job is not None
            assert job.status == "failed"
            assert job.error is not None
            assert job.files == ()
            if error is not None:
                assert job.error == error
            else:
                assert job.error.code == "server_error"
                assert "secret" not in job.error.message
                assert bad in caplog.text

    with caplog.at_level(logging.ERROR, logger="omni_core"):
        run(test())
    assert ("/secret/path" in caplog.text) == isinstance(result, RuntimeError), "the log says what happened"


def test_an_execute_that_raises_at_once(store: JobStore) -> None:
    async def test() -> None:
        def execute(*_: Any) -> Any:
            raise JobFailed("a", "b")

        async with running(store, execute) as runner:
            (job_id,) = await add(runner, 1)
            await until(lambda: status(store, job_id) == "failed")

    run(test())


def test_a_running_job_is_deleted(store: JobStore) -> None:
    async def test() -> None:
        work = Work()
        async with running(store, work, limit=1) as runner:
            first, second, third = await add(runner, 1, 2, 3)
            await until(lambda: work.begun)
            assert await runner.delete(second), "one that waits"
            assert await runner.delete(first), "one that runs"
            assert store.get(first) is None
            assert not await runner.delete(first)
            await until(lambda: work.begun == [1, 3])
            assert work.cancelled == [1]
            work.end(3)
            await until(lambda: status(store, third) == "completed")
            assert await runner.delete(third), "one that is done"
            assert store.list() == ((), False)
            assert list((store.folder / "files").iterdir()) == []

    run(test())


def test_a_job_that_is_deleted_as_soon_as_it_is_made(store: JobStore) -> None:
    async def test() -> None:
        work = Work()
        async with running(store, work, limit=1) as runner:
            for number in range(30):
                job, _ = await runner.add("video", "m", {"n": number}, uploads={"a": b"x"})
                for _ in range(number):
                    await asyncio.sleep(0)
                assert await runner.delete(job.id)
                await until(lambda: runner.num_running == 0)
            assert work.cancelled == work.begun
            assert work.at_once == 0
            assert list((store.folder / "files").iterdir()) == []

    run(test())


def test_a_deleted_job_that_will_not_be_cancelled(store: JobStore) -> None:
    async def test() -> None:
        release = asyncio.Event()
        begun: list[str] = []

        async def execute(job: Job, _: Callable[[int], None]) -> dict[str, tuple[str, bytes]]:
            begun.append(job.id)
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
            await release.wait()
            if len(begun) == 1:
                raise RuntimeError("what was deleted ends like this")
            return {"a": ("a/b", b"x")}

        async with running(store, execute, limit=1) as runner:
            for _ in range(2):
                (job_id,) = await add(runner, 1)
                await until(lambda job_id=job_id: job_id in begun)
                assert await asyncio.wait_for(runner.delete(job_id), 5), "does not wait for it"
                assert runner.num_running == 1, "it keeps its place"
                release.set()
                await until(lambda: runner.num_running == 0)
                release.clear()
            assert store.list() == ((), False)
            assert list((store.folder / "files").iterdir()) == []

    run(test())


def test_draining(store: JobStore) -> None:
    async def test() -> None:
        work = Work()
        async with running(store, work) as runner:
            ids = await add(runner, 1, 2, 3)
            await until(lambda: len(work.begun) == 2)
            draining = asyncio.create_task(runner.drain(60))
            work.end(1)
            await until(lambda: status(store, ids[0]) == "completed")
            assert not draining.done()
            (late,) = await add(runner, 4)
            work.end(2)
            await draining
            assert work.cancelled == []
            assert [status(store, job_id) for job_id in [*ids, late]] == ["completed", "completed", "queued", "queued"]

    run(test())


def test_a_restart_does_what_was_left_in_its_order(open_store: Callable[..., JobStore], caplog: Any) -> None:
    store = open_store()
    ids: list[str] = []

    async def first() -> None:
        work = Work()
        async with running(store, work) as runner:
            ids.extend(await add(runner, 1, 2, 3, 4))
            await until(lambda: len(work.begun) == 2)
            work.end(1)
            await until(lambda: len(work.begun) == 3)
            await runner.drain(0.01)
            assert work.cancelled == [2, 3]
            assert runner.num_running == 0
        assert [status(store, job_id) for job_id in ids] == ["completed", "queued", "queued", "queued"]

    async def second() -> None:
        work = Work()
        async with running(store, work, limit=1) as runner:
            for number in (2, 3, 4):
                await until(lambda number=number: number in work.ends)
                assert status(store, ids[number - 1]) == "in_progress"
                work.end(number)
            await until(lambda: runner.num_running == 0)
            assert work.begun == [2, 3, 4]

    run(first())
    store.close()
    store = open_store()
    run(second())
    assert {job.status for job in store.list()[0]} == {"completed"}
    assert "server_error" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_result_that_is_being_recorded_while_closing_is_recorded(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        work = Work()
        inside, go_on = threading.Event(), threading.Event()
        complete = store.complete

        def slowly(*args: Any) -> Any:
            inside.set()
            assert go_on.wait(BOUND_S)
            return complete(*args)

        monkeypatch.setattr(store, "complete", slowly)
        async with running(store, work) as runner:
            (job_id,) = await add(runner, 1)
            await until(lambda: work.begun)
            work.end(1)
            await until(inside.is_set)
            closing = asyncio.create_task(runner.aclose())
            await until(lambda: next(iter(runner._running.values())).is_given_up)
            go_on.set()
            await closing
            assert status(store, job_id) == "completed"

    run(test())


def test_a_loop_that_is_torn_down_without_closing(open_store: Callable[..., JobStore]) -> None:
    store = open_store()
    work = Work()
    runners: list[JobRunner] = []

    async def test() -> None:
        runner = JobRunner(store, work, 1)
        runners.append(runner)
        await runner.start()
        await add(runner, 1)
        await until(lambda: work.begun)

    asyncio.run(test())  # cancels all tasks in the end, as Ctrl-C does
    runners[0]._thread.close(BOUND_S)
    assert [job.status for job in store.list()[0]] == ["in_progress"], "it begins again at the next start"


def test_a_caller_that_is_cancelled_while_it_adds(store: JobStore) -> None:
    async def test() -> None:
        work = Work()
        async with running(store, work, limit=100) as runner:
            for number in range(20):
                adding = asyncio.create_task(add(runner, number))
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                adding.cancel()
                await asyncio.wait([adding])
            await add(runner, 99)
            await until(lambda: len(work.begun) == len(store.list(limit=100)[0]))

    run(test())


def test_store_calls_are_in_one_thread_and_not_in_the_loops(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    reading = store._reading

    def watched() -> Any:
        threads.add(threading.current_thread().name)
        return reading()

    async def test() -> None:
        work = Work()
        monkeypatch.setattr(store, "_reading", watched)
        async with running(store, work) as runner:
            first, second = await add(runner, 1, 2)
            await until(lambda: len(work.begun) == 2)
            work.progress[1](10)
            work.end(1)
            work.end(2, JobFailed("a", "b"))
            await until(lambda: runner.num_running == 0)
            await runner.delete(first)
            await runner.delete(second)

    run(test())
    assert threads == {"omni-jobs"}


def test_expiry_goes_on_by_itself(open_store: Callable[..., JobStore], clock: Any) -> None:
    store = open_store(max_bytes=20)

    async def test() -> None:
        work = Work()
        async with running(store, work, limit=1, expire_every_s=0.01) as runner:
            ids = await add(runner, 1, 2, 3)
            for number in (1, 2, 3):
                await until(lambda number=number: number in work.ends)
                work.end(number)
            await until(lambda: runner.num_running == 0)
            assert [status(store, job_id) for job_id in ids] == [None, "completed", "completed"], "8 bytes each"
            clock.now += 24 * 3600
            await until(lambda: store.list() == ((), False))

    run(test())


def test_a_result_that_is_larger_than_the_cap(open_store: Callable[..., JobStore]) -> None:
    store = open_store(max_bytes=20)

    async def test() -> None:
        work = Work()
        async with running(store, work) as runner:
            (job_id,) = await add(runner, 1)
            await until(lambda: work.begun)
            work.end(1, {"a": ("a/b", b"x" * 21)})
            await until(lambda: status(store, job_id) == "failed")
            job = store.get(job_id)
            assert job is not None
            assert job.error is not None
            assert job.error.code == "storage_full"
            assert str(store.folder) not in job.error.message

    run(test())


def test_a_disk_that_takes_nothing_for_a_while(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        work = Work()
        is_full = True
        counts = dict.fromkeys(("take", "complete", "fail", "expire"), 0)

        def failing(name: str) -> Any:
            method = getattr(store, name)

            def call(*args: Any) -> Any:
                if is_full:
                    counts[name] += 1
                    raise JobStoreError("the disk is full")
                return method(*args)

            return call

        async with running(store, work, limit=1, expire_every_s=0.01) as runner:
            first, second = await add(runner, 1, 2)
            await until(lambda: work.begun)
            for name in counts:
                monkeypatch.setattr(store, name, failing(name))
            work.end(1)
            await until(lambda: all(count > 1 for name, count in counts.items() if name != "complete"))
            assert status(store, first) == "in_progress"
            assert runner.num_running == 0
            is_full = False
            await until(lambda: status(store, first) == "failed")
            job = store.get(first)
            assert job is not None
            assert job.error is not None
            assert job.error.code == "server_error"
            await until(lambda: 2 in work.ends)
            work.end(2)
            await until(lambda: status(store, second) == "completed")
            assert counts["complete"] == 1
            assert work.begun == [1, 2]

    run(test())


def test_closing_twice_and_without_a_start(store: JobStore) -> None:
    async def test() -> None:
        runner = JobRunner(store, Work(), 1)
        await runner.aclose()
        await runner.aclose()
        with pytest.raises(ValueError, match="limit"):
            JobRunner(store, Work(), 0)
        runner = JobRunner(store, Work(), 1)
        await runner.start()
        await runner.drain(1)
        await runner.drain(1)
        await runner.aclose()

    run(test())


def test_many_jobs_at_once(open_store: Callable[..., JobStore]) -> None:
    store = open_store()
    done: list[int] = []

    async def execute(job: Job, progress: Callable[[int], None]) -> dict[str, tuple[str, bytes]]:
        for percent in range(job.request["n"] % 7):
            progress(percent)
            await asyncio.sleep(0)
        done.append(job.request["n"])
        return {"a": ("a/b", b"x")}

    async def test() -> None:
        async with running(store, execute, limit=4) as runner:
            results = await asyncio.gather(
                *(runner.add("video", "m", {"n": number}, idempotency=(f"{number % 40}", "d")) for number in range(80))
            )
            assert sum(is_new for _, is_new in results) == 40
            await until(lambda: {job.status for job in store.list(limit=100)[0]} == {"completed"})
            await until(lambda: runner.num_running == 0)

    run(test())
    assert sorted(done) == list(range(40))
