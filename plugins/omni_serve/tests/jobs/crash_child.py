"""A server of jobs for `test_crash.py`, which kills it: makes so many jobs, does them and ends.

Each step is appended to a log, synced, and told to the parent by one byte on standard output.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omni_serve.jobs import Job, JobRunner, JobStore


def content(request: Mapping[str, Any]) -> bytes:
    """Return the result of a request: it depends on the seed alone."""
    return random.Random(request["seed"]).randbytes(30_000 + request["seed"])


def upload(seed: int) -> bytes:
    return random.Random(-seed).randbytes(5_000)


class LoggingStore(JobStore):
    def complete(self, job_id: str, files: Any) -> Job | None:
        job = super().complete(job_id, files)
        if job is not None:
            say("recorded", job_id)
        return job


def say(*words: object) -> None:
    os.write(LOG, f"{' '.join(map(str, words))}\n".encode())
    os.fsync(LOG)
    os.write(1, b".")


async def execute(job: Job, progress: Callable[[int], None]) -> dict[str, tuple[str, bytes]]:
    say("began", job.id)
    assert store.upload_path_of(job, "in.png").read_bytes() == upload(job.request["seed"])
    for percent in (30, 60):
        progress(percent)
        await asyncio.sleep(0)
    result = content(job.request)
    say("executed", job.id)
    return {"a.bin": ("a/b", result), "b.bin": ("a/b", result[::-1])}


async def main(count: int) -> None:
    runner = JobRunner(store, execute, limit=2, most_attempts=1_000)
    await runner.start()
    for seed in range(count):
        job, is_new = await runner.add(
            "video", "m", {"seed": seed}, uploads={"in.png": upload(seed)}, idempotency=(f"key {seed}", str(seed))
        )
        if is_new:
            say("made", seed, job.id)
    while not all(job.has_ended for job in store.list(limit=1000)[0]):
        await asyncio.sleep(0.005)
    await runner.aclose()


if __name__ == "__main__":
    signal.alarm(60)  # a bound: ends this process
    LOG = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    store = LoggingStore(Path(sys.argv[1]))
    asyncio.run(main(int(sys.argv[3])))
    store.close()
