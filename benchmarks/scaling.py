"""What worker processes gain and cost: two of them against one, and the time until they are ready.

    pip install omni-exec-multiproc
    python benchmarks/scaling.py [--rounds 5] [--requests 16]

- Throughput: the same requests through one worker and through two, with one thread each, alternating in one run. With
  `max_num_seqs=1`, so that batching does not blur what is compared.
- Start: from nothing to ready, for one and two workers, against a new interpreter that imports diffusers and loads the
  same pipeline; and how soon a worker that was killed is replaced.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

BARE = """
import torch
from diffusers import DiffusionPipeline
from omni_core.worker.pipeline.loader import SMALL_MODEL
DiffusionPipeline.from_pretrained(SMALL_MODEL, dtype=torch.float32)
"""


def engine_of(workers: int) -> Any:
    """An engine of so many workers of the small model, one thread each."""
    from omni_core import DiffusionEngine, OmniDiffusionConfig

    return DiffusionEngine(
        OmniDiffusionConfig(executor_class="multiproc", data_parallel_size=workers, num_threads=1, max_num_seqs=1)
    )


def throughput(rounds: int, count: int, steps: int) -> None:
    """Print the throughput of two workers over that of one."""
    from omni_core import OmniDiffusionRequest

    def run(engine: Any) -> float:
        requests = [
            OmniDiffusionRequest(prompt="a red seven", seed=seed, num_inference_steps=steps) for seed in range(count)
        ]
        began = time.perf_counter()
        for output in engine.step(requests):
            output.raise_for_error()
        return time.perf_counter() - began

    with engine_of(1) as one, engine_of(2) as two:
        for engine in (one, two):
            run(engine)
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds):
            sides = [(0, one), (1, two)]
            for side, engine in sides if number % 2 else reversed(sides):
                times[side].append(run(engine))
    ratios = [single / double for single, double in zip(*times, strict=True)]
    print(
        f"two workers / one: {statistics.median(ratios):.2f} x the throughput ({min(ratios):.2f} to {max(ratios):.2f}, "
        f"{rounds} rounds of {count} requests of {steps} steps; one worker {statistics.median(times[0]):.2f} s)",
        flush=True,
    )


def start(rounds: int) -> None:
    """Print the time until workers are ready over that of bare diffusers."""
    bare: list[float] = []
    ready: dict[int, list[float]] = {1: [], 2: []}
    replaced: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", BARE], check=True, capture_output=True)
        bare.append(time.perf_counter() - began)
        for workers, times in ready.items():
            began = time.perf_counter()
            with engine_of(workers) as engine:
                times.append(time.perf_counter() - began)
                if workers == 1:
                    [[pid]] = engine.executor.worker_pids()
                    began = time.perf_counter()
                    os.kill(pid, signal.SIGKILL)
                    while engine.executor.worker_pids() == [[pid]]:
                        time.sleep(0.001)
                    engine.collective_rpc("check_health")  # waits for the one in its place
                    replaced.append(time.perf_counter() - began)
    for workers, times in ready.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(times, bare, strict=True))
        print(f"ready with {workers} worker(s): {ratio:.2f} x bare import and load ({statistics.median(times):.2f} s)")
    ratio = statistics.median(mine / theirs for mine, theirs in zip(replaced, bare, strict=True))
    print(f"a killed worker is replaced in {ratio:.2f} x bare import and load ({statistics.median(replaced):.2f} s)")


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    throughput(options.rounds, options.requests, options.steps)
    start(options.rounds)


if __name__ == "__main__":
    main()
