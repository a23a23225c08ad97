"""What the ranks of one replica gain and cost: `cfg_parallel_size=2` against one rank, one thread each.

    python benchmarks/parallel.py [--rounds 15]

Row parallel: denoising steps of the random DiT of `overhead.py` (12 layers of width 384, 256 tokens), one guided
request. One rank and two take turns in one run, so that noise of the machine hits both. Control plane: what ranks
exchange in each step, against a bare gloo broadcast of 4 bytes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from overhead import large, request_of

STEPS = 10


def row_parallel(group: Any, rounds: int) -> None:
    """Print one line: step time of one rank and of two."""
    from omni_core import OmniDiffusionConfig
    from omni_core.outputs import SchedulerOutput
    from omni_core.worker.worker import DiffusionWorker

    build, arguments = large()
    one = DiffusionWorker(OmniDiffusionConfig(), pipeline=build()) if group.rank == 0 else None
    config = OmniDiffusionConfig(cfg_parallel_size=group.world_size)
    two = DiffusionWorker(config, rank=group.rank, pipeline=build(), group=group)

    def run(worker: Any) -> tuple[float, Any]:
        request = request_of({**arguments, "num_inference_steps": STEPS}).model_copy(update={"request_id": "r"})
        worker.execute_step(SchedulerOutput(new_requests=[request], waves=[("r",)]))
        start = time.perf_counter()
        worker.execute_step(SchedulerOutput(waves=[("r",)] * (STEPS - 2)))
        seconds = time.perf_counter() - start
        finished: list[Any] = []
        while not finished:  # the last step, and a wave more where the picture is decoded beside the steps
            finished = worker.execute_step(SchedulerOutput(waves=[("r",)])).finished
        return seconds / (STEPS - 2), finished[0].raise_for_error().images[0]

    import numpy as np

    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        alone = run(one) if one is not None else None
        group.agree(0.0)
        seconds, picture = run(two)
        if alone is None:
            continue
        if np.abs(np.asarray(alone[1], dtype=int) - np.asarray(picture, dtype=int)).max() > 1:
            raise SystemExit("one rank and two give different pictures, so their times mean nothing")
        if number > 0:
            times[0].append(alone[0])
            times[1].append(seconds)
    if one is not None:
        one.close()
        ratios = [one_s / two_s for one_s, two_s in zip(*times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"row parallel   one rank / two = {middle:.3f}  (middle half {low:.3f} to {high:.3f}, {rounds} rounds)   "
            f"step of one rank {statistics.median(times[0]) * 1e3:.1f} ms, "
            f"of two {statistics.median(times[1]) * 1e3:.1f} ms",
            flush=True,
        )


def control_plane(group: Any, rounds: int) -> None:
    """Print one line for each exchange: its time, and as a multiple of a bare broadcast's."""
    import torch
    import torch.distributed as dist

    number, rows = torch.zeros(1), torch.zeros(1, 4096)
    exchanges: dict[str, Callable[[], Any]] = {
        "bare broadcast": lambda: dist.broadcast(number, 0),
        "broadcast_object": lambda: group.broadcast_object({"waves": 8}),
        "agree": lambda: group.agree(1.0),
        "all_gather_rows": lambda: group.all_gather_rows(rows, [1, 1]),
    }
    times: dict[str, list[float]] = {name: [] for name in exchanges}
    for _ in range(rounds * 20):
        for name, exchange in exchanges.items():
            start = time.perf_counter()
            exchange()
            times[name].append(time.perf_counter() - start)
    if group.rank == 0:
        bare = statistics.median(times["bare broadcast"])
        for name, found in times.items():
            middle = statistics.median(found)
            print(f"{name:17} {middle * 1e6:6.0f} us   {middle / bare:.2f} x a bare broadcast", flush=True)


def rank_main(rank: int, rendezvous: str, rounds: int) -> None:
    """Run everything as one rank of two."""
    import torch

    from omni_core.worker.rank_group import RankGroup

    torch.set_num_threads(1)
    group = RankGroup.connect(rank, 2, rendezvous, timeout_s=120.0)
    row_parallel(group, rounds)
    control_plane(group, rounds)
    group.close()


def main() -> None:
    """Start two ranks and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{Path(folder) / 'store'}"
        ranks = [context.Process(target=rank_main, args=(rank, rendezvous, options.rounds)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            raise SystemExit("a rank failed")


if __name__ == "__main__":
    main()
