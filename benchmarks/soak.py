"""Random traffic with kills, stops and poison on two worker processes, and what comes of it: `nox -s soak`.

Ends with 1 if a picture was wrong, if a harmless request failed, or if anything was left over.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, RequestHandle
from omni_core.errors import RequestError
from omni_core.testing.bounds import is_healthy, wait_until
from omni_core.testing.injection import fault
from omni_core.testing.poison import ATTACKS

MODEL = "omni_core.testing.pipelines:faulty"
FIELDS: dict[str, Any] = {
    "prompt": "a red seven",
    "height": 32,
    "width": 32,
    "guidance_scale": 4.0,
    "output_type": "np",
}
SEEDS, STEPS = range(6), (3, 8, 20, 60)
TOLERANCE = 1e-4
# Requests that run or wait at a time.
MOST_AT_A_TIME = 24


def ask(seed: int, steps: int, **fields: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(**{**FIELDS, "seed": seed, "num_inference_steps": steps, **fields})


def expected_pictures() -> dict[tuple[int, int], Any]:
    """What the inline executor makes of each harmless request, alone."""
    with DiffusionEngine(OmniDiffusionConfig(model=MODEL, stacking="off")) as engine:
        return {
            (seed, steps): np.asarray(engine.step([ask(seed, steps)])[0].raise_for_error().images)
            for seed in SEEDS
            for steps in STEPS
        }


class Soak:
    """One run."""

    def __init__(self, engine: DiffusionEngine, seconds: float, seed: int) -> None:
        self.engine = engine
        self.random = random.Random(seed)
        self.end = time.monotonic() + seconds
        self.expected = expected_pictures()
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.failed: list[str] = []
        self.latencies: list[float] = []
        self.sizes: list[tuple[int, int, int]] = []

    def run(self) -> None:
        """Send requests until the time is over, and wait for all."""
        trouble = threading.Thread(target=self._trouble)
        trouble.start()
        left: collections.deque[tuple[RequestHandle, tuple[int, int] | None, float]] = collections.deque()
        measured_at = time.monotonic()
        while time.monotonic() < self.end:
            while len(left) < MOST_AT_A_TIME:
                if (sent := self._send()) is not None:
                    left.append((*sent, time.monotonic()))
            handle, key, began = left.popleft()
            if handle.done() or len(left) >= MOST_AT_A_TIME - 1:
                self._judge(handle, key, began)
            else:
                left.append((handle, key, began))
            if time.monotonic() - measured_at > 15:
                measured_at = time.monotonic()
                self._measure()
        trouble.join()
        for handle, key, began in left:
            self._judge(handle, key, began)
        self._measure()

    def _send(self) -> tuple[RequestHandle, tuple[int, int] | None] | None:
        kind = self.random.choices(["good", "poison", "killer", "abort", "limit"], [80, 8, 2, 6, 4])[0]
        self.counts[kind] += 1
        seed, steps = self.random.choice(SEEDS), self.random.choice(STEPS)
        if kind == "good":
            return self.engine.submit(ask(seed, steps)), (seed, steps)
        fields: dict[str, Any] = {}
        if kind == "poison":
            fields = dict(ATTACKS[self.random.choice(sorted(ATTACKS))].fields())
            for name in ("note", "fault"):
                if name in fields:
                    fields.setdefault("extra_args", {})[name] = fields.pop(name)
            fields.pop("request_id", None)
        elif kind == "killer":
            plan = fault(self.random.choice(["exit", "kill"]), step=self.random.randint(1, 3))
            fields = {"extra_args": {"fault": plan}}
        elif kind == "limit":
            fields = {"timeout_s": self.random.uniform(0.01, 1.0)}
        try:
            own = {"seed": seed, "num_inference_steps": steps, **fields}
            handle = self.engine.submit(ask(own.pop("seed"), own.pop("num_inference_steps"), **own))
        except RequestError:
            self.counts["refused"] += 1
            return None
        if kind == "abort":
            timer = threading.Timer(self.random.uniform(0.0, 0.5), handle.abort)
            timer.daemon = True
            timer.start()
        return handle, None

    def _judge(self, handle: RequestHandle, key: tuple[int, int] | None, began: float) -> None:
        output = handle.result(300)
        self.counts[f"ended: {output.finish_reason}"] += 1
        if key is None:
            return
        events = handle.past_events()
        self.latencies.append(output.metrics.total_s if events else time.monotonic() - began)
        if output.error is not None:
            self.failed.append(str(output.error).splitlines()[0])
        elif np.abs(np.asarray(output.images) - self.expected[key]).max() > TOLERANCE:
            self.wrong.append(f"seed {key[0]}, {key[1]} steps")

    def _trouble(self) -> None:
        """Kill and stop workers now and then."""
        tick = threading.Event()
        while time.monotonic() < self.end - 5:
            tick.wait(self.random.uniform(2.0, 8.0))
            workers = [one for one in self.engine.executor.worker_stats() if one.state in ("idle", "busy")]
            if not workers:
                continue
            pid = self.random.choice(workers).pid
            assert pid is not None
            with contextlib.suppress(ProcessLookupError):
                if self.random.random() < 0.6:
                    os.kill(pid, signal.SIGKILL)
                    self.counts["kills"] += 1
                else:
                    os.kill(pid, signal.SIGSTOP)
                    self.counts["stops"] += 1
                    tick.wait(self.random.uniform(0.5, 4.0))
                    os.kill(pid, signal.SIGCONT)

    def _measure(self) -> None:
        gc.collect()
        process = psutil.Process()
        self.sizes.append((process.memory_info().rss >> 20, process.num_fds(), process.num_threads()))


def omni_threads() -> int:
    """How many threads of omni's there are. Torch starts some of its own, once in a process."""
    return sum(thread.name.startswith("omni-") for thread in threading.enumerate())


def leftovers(work: Callable[[], None]) -> list[str]:
    """Return which processes, threads and files there are more of after some work."""
    process = psutil.Process()
    before = (len(process.children(recursive=True)), omni_threads(), process.num_fds())
    work()
    gc.collect()
    after = (len(process.children(recursive=True)), omni_threads(), process.num_fds())
    names = ("processes", "threads", "files")
    return [f"{name}: {one} -> {two}" for name, one, two in zip(names, before, after, strict=True) if two > one + 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    runs: list[Soak] = []

    def work() -> None:
        config = OmniDiffusionConfig(
            model=MODEL, executor_class="multiproc", data_parallel_size=2, log_level="error", max_retries=4
        )
        with DiffusionEngine(config) as engine:
            runs.append(Soak(engine, options.seconds, options.seed))
            runs[0].run()
            wait_until(lambda: is_healthy(engine), "the engine is healthy again", 60.0)

    settings = OmniDiffusionConfig(model=MODEL, executor_class="multiproc")
    with DiffusionEngine(settings) as engine:  # what is made once in a process is no leak
        engine.step([ask(1, 3)])
    left = leftovers(work)
    [soak] = runs
    latencies = sorted(soak.latencies)
    print(dict(sorted(soak.counts.items())))
    print(f"harmless requests: {len(latencies)}, wrong pictures: {len(soak.wrong)}, failed: {len(soak.failed)}")
    for what in (*soak.wrong, *soak.failed):
        print(f"  {what}")
    if latencies:
        p99 = latencies[int(0.99 * (len(latencies) - 1))]
        print(f"latency: median {statistics.median(latencies):.2f} s, p99 {p99:.2f} s, longest {latencies[-1]:.2f} s")
    print("memory in MiB, files, threads every 15 s:", *soak.sizes)
    print("left over:", left or "nothing")
    return int(bool(soak.wrong or soak.failed or left))


if __name__ == "__main__":
    sys.exit(main())
