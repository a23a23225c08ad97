"""Servers that are killed with SIGKILL: at random moments, and at lines all over the code."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import omni_serve.jobs
from omni_serve.jobs import JobStore

BOUND_S = 60.0
CHILD = Path(__file__).with_name("crash_child.py")
CODE = str(Path(omni_serve.jobs.__file__).parent)
NUM_KILLS = 20
NUM_LINES = 200


def files_of(store: JobStore) -> set[str]:
    root = store.folder / "files"
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def assert_files_are_those_of_rows(store: JobStore) -> None:
    """Nothing is missing, too much, or of another size."""
    expected: set[str] = set()
    for job in store.list(limit=1000)[0]:
        expected |= {f"{job.id}/uploads/{name}" for name in job.uploads}
        expected |= {f"{job.id}/outputs/{file.name}" for file in job.files}
        for file in job.files:
            assert store.path_of(job, file.name).stat().st_size == file.size_bytes
    assert files_of(store) == expected


@pytest.fixture(scope="module")
def program() -> Any:
    spec = importlib.util.spec_from_file_location("crash_child", CHILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_server_that_is_killed_twenty_times(fast_path: Path, program: Any) -> None:
    log = fast_path / "log"
    log.touch()
    seen_completed: set[str] = set()
    num_lines_seen = num_redone = 0

    def check() -> None:
        nonlocal num_lines_seen, seen_completed, num_redone
        lines = [line.split() for line in log.read_text().splitlines()]
        # What was completed when the store was last looked at has not been begun again since.
        begun_since = [words[1] for words in lines[num_lines_seen:] if words[0] == "began"]
        assert not seen_completed & set(begun_since)
        num_lines_seen = len(lines)
        recorded: set[str] = set()
        began: list[str] = []
        for words in lines:
            if words[0] == "recorded":
                assert words[1] not in recorded
                recorded.add(words[1])
            elif words[0] == "began":
                assert words[1] not in recorded, "done again after it was recorded"
                began.append(words[1])
        num_redone = len(began) - len(set(began))
        made = {words[2]: int(words[1]) for words in lines if words[0] == "made"}
        assert len(set(made.values())) == len(made), "one key, one job"
        with contextlib.closing(JobStore(fast_path / "data")) as store:
            jobs = store.list(limit=1000, order="asc")[0]
            assert len({job.request["seed"] for job in jobs}) == len(jobs)
            assert [job.request["seed"] for job in jobs] == list(range(len(jobs))), "in the order in which they came"
            assert set(made) <= {job.id for job in jobs}
            assert not [job for job in jobs if job.status == "failed"]
            completed = {job.id for job in jobs if job.status == "completed"}
            assert recorded <= completed
            assert seen_completed <= completed
            seen_completed = completed
            assert_files_are_those_of_rows(store)
            for job in jobs:
                if job.status == "completed":
                    expected = program.content(job.request)
                    assert store.path_of(job, "a.bin").read_bytes() == expected
                    assert store.path_of(job, "b.bin").read_bytes() == expected[::-1]

    def start(count: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, CHILD, fast_path / "data", log, str(count)], stdout=subprocess.PIPE)

    num_killed = 0
    for number in range(NUM_KILLS):
        with start(8 * (number + 1)) as child:
            assert child.stdout is not None
            child.stdout.read(random.randint(1, 20))  # so many steps
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(random.uniform(0, 0.01))
            child.kill()
        assert child.returncode in (0, -signal.SIGKILL)
        num_killed += child.returncode == -signal.SIGKILL
        check()
    with start(8 * NUM_KILLS) as child:
        child.communicate(timeout=BOUND_S)
    assert child.returncode == 0
    check()
    assert len(seen_completed) == 8 * NUM_KILLS
    assert num_killed > NUM_KILLS / 2, "the test would show nothing"
    assert num_redone > 0


def life(data_dir: Path, tell: Callable[[str, str], None]) -> None:
    """What jobs go through, with a word after each step."""
    store = JobStore(data_dir, clock=lambda: 1_700_000_000.0)
    store.requeue_unfinished()
    made = []
    for number in range(3):
        job, _ = store.create("video", "m", {"n": number}, uploads={"in.png": b"in"}, idempotency=(f"{number}", "d"))
        tell("made", job.id)
        made.append(job.id)
    for job in store.take(2):
        tell("taken", job.id)
    store.complete(made[0], {"a": ("a/b", b"result a"), "b": ("a/b", b"result b")})
    tell("completed", made[0])
    store.fail(made[1], "code", "message")
    tell("failed", made[1])
    tell("deleting", made[2])
    store.delete(made[2])
    tell("deleted", made[2])
    tell("expiring", made[0])
    store.expire(1_800_000_000.0)
    tell("expired", made[0])
    store.close()


def killed_at(data_dir: Path, line: int | None) -> tuple[dict[str, list[str]], int]:
    """Run this life in a process that kills itself at so many lines of the code; return what it told and the lines."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        count = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal count
            if not frame.f_code.co_filename.startswith(CODE):
                return None
            if event == "line":
                count += 1
                if count == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        def tell(*words: str) -> None:
            os.write(writing, (json.dumps(words) + "\n").encode())

        try:
            sys.settrace(trace)
            life(data_dir, tell)
            sys.settrace(None)
            tell("lines", str(count))
        finally:
            os._exit(0)
    os.close(writing)
    told: dict[str, list[str]] = {}
    with os.fdopen(reading) as pipe:
        for word, value in map(json.loads, pipe):
            told.setdefault(word, []).append(value)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == (0 if line is None else -signal.SIGKILL)
    return told, int(told.pop("lines", ["0"])[0])


def test_a_server_that_is_killed_at_any_line(fast_path: Path) -> None:
    told, num_lines = killed_at(fast_path / "whole", None)
    assert len(told["made"]) == 3
    assert told["expired"]
    points = sorted(random.sample(range(1, num_lines + 1), NUM_LINES))
    for point in points:
        data_dir = fast_path / str(point)
        told, _ = killed_at(data_dir, point)
        made, gone = told.get("made", []), {*told.get("deleted", ()), *told.get("expired", ())}
        going = {*told.get("deleting", ()), *told.get("expiring", ())}
        with contextlib.closing(JobStore(data_dir, clock=lambda: 1_700_000_000.0)) as store:
            assert_files_are_those_of_rows(store)
            jobs = {job.id: job for job in store.list(order="asc")[0]}
            assert not gone & set(jobs), point
            if "expired" not in told and "expiring" not in told:  # that one may take the failed job too
                assert set(made) - going <= set(jobs), point
                assert len(jobs) <= len(made) + 1
            for word, status in (("completed", "completed"), ("failed", "failed")):
                for job_id in told.get(word, ()):
                    assert job_id not in jobs or jobs[job_id].status == status, point
            # Whatever was not recorded as ended can be done, and with the same key nothing is made twice.
            store.requeue_unfinished()
            for number in range(len(jobs)):
                if "expiring" not in told and "deleting" not in told:
                    job, is_new = store.create("video", "m", {}, idempotency=(f"{number}", "d"))
                    assert not is_new
                    assert job.request == {"n": number}
            for job in store.take(10):
                assert not job.has_ended
                assert store.complete(job.id, {"a": ("a/b", b"result a"), "b": ("a/b", b"result b")}) is not None
            assert_files_are_those_of_rows(store)
