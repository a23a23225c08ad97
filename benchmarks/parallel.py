"""What the ranks of one replica gain and cost: two against one, one thread each.

    python benchmarks/parallel.py [--rounds 15]

Row parallel (`cfg_parallel_size=2`): denoising steps of the random DiT of `overhead.py` (12 layers of width 384, 256
tokens), one guided request. Ulysses (`ulysses_degree=2`): the same of a random Wan of that size. One rank and two take
turns in one run, so that noise of the machine hits both. Control plane: what ranks exchange in each step, and, where
omni-exec-torchrun is installed, a call of its driver to both ranks, against a bare gloo broadcast of 4 bytes.
"""

from __future__ import annotations

import argparse
import importlib.util
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


def wide_wan() -> tuple[Callable[[], Any], dict[str, Any]]:
    """A random Wan of 12 layers of width 384 with 256 tokens, which has a plan for splitting its sequence."""
    import torch

    from omni_core.testing.pipelines import video

    wide = {"num_attention_heads": 12, "attention_head_dim": 32, "num_layers": 12, "ffn_dim": 1536, "freq_dim": 64}

    def build() -> Any:
        pipeline = video()
        small = pipeline.transformer
        torch.manual_seed(0)
        pipeline.transformer = type(small).from_config(small.config, rope_max_seq_len=64, **wide).eval()
        return pipeline

    size = {"height": 256, "width": 256, "num_frames": 1}
    return build, {"prompt": "a cat", "num_inference_steps": STEPS, "guidance_scale": 4.0, **size}


def compare(group: Any, name: str, split: str, model: tuple[Callable[[], Any], dict[str, Any]], rounds: int) -> None:
    """Print one line: step time of one rank and of two.

    Args:
        group: The ranks.
        name: What to call it.
        split: Configuration field that says how the ranks share a forward.
        model: Makes a pipeline, and the arguments of a request to it.
        rounds: How often to measure.
    """
    from omni_core import OmniDiffusionConfig
    from omni_core.outputs import SchedulerOutput
    from omni_core.worker.worker import DiffusionWorker

    build, arguments = model
    one = DiffusionWorker(OmniDiffusionConfig(), pipeline=build()) if group.rank == 0 else None
    config = OmniDiffusionConfig(**{split: group.world_size})
    two = DiffusionWorker(config, rank=group.rank, pipeline=build(), group=group)

    def run(worker: Any) -> tuple[float, Any]:
        request = request_of({**arguments, "num_inference_steps": STEPS, "output_type": "np"}).model_copy(
            update={"request_id": "r"}
        )
        worker.execute_step(SchedulerOutput(new_requests=[request], waves=[("r",)]))
        start = time.perf_counter()
        worker.execute_step(SchedulerOutput(waves=[("r",)] * (STEPS - 2)))
        seconds = time.perf_counter() - start
        finished: list[Any] = []
        while not finished:  # the last step, and a wave more where the picture is decoded beside the steps
            finished = worker.execute_step(SchedulerOutput(waves=[("r",)])).finished
        return seconds / (STEPS - 2), next(iter(finished[0].raise_for_error().output.values()))

    import numpy as np

    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        alone = run(one) if one is not None else None
        group.agree(0.0)
        seconds, picture = run(two)
        if alone is None:
            continue
        if np.abs(np.asarray(alone[1]) - np.asarray(picture)).max() > 1e-4:
            raise SystemExit("one rank and two give different pictures, so their times mean nothing")
        if number > 0:
            times[0].append(alone[0])
            times[1].append(seconds)
    if one is not None:
        one.close()
        ratios = [one_s / two_s for one_s, two_s in zip(*times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name:14} one rank / two = {middle:.3f}  (middle half {low:.3f} to {high:.3f}, {rounds} rounds)   "
            f"step of one rank {statistics.median(times[0]) * 1e3:.1f} ms, "
            f"of two {statistics.median(times[1]) * 1e3:.1f} ms",
            flush=True,
        )


def control_plane(group: Any, rounds: int) -> tuple[float, float]:
    """Print one line for each exchange; return the seconds of a bare broadcast, and of one of an object."""
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
    medians = {name: statistics.median(found) for name, found in times.items()}
    if group.rank == 0:
        for name, middle in medians.items():
            tell(name, middle, medians["bare broadcast"])
    return medians["bare broadcast"], medians["broadcast_object"]


def tell(name: str, seconds: float, bare: float) -> None:
    """Print one line."""
    print(f"{name:34} {seconds * 1e6:6.0f} us   {seconds / bare:.2f} x a bare broadcast", flush=True)


def driver_calls(rounds: int, bare: float, broadcast_object: float) -> None:
    """Print what a call of the torchrun executor costs: to both ranks, or to one that would tell the other."""
    from omni_core import DiffusionEngine, OmniDiffusionConfig

    medians = {}
    for ranks in (1, 2):
        with DiffusionEngine(OmniDiffusionConfig(executor_class="torchrun", cfg_parallel_size=ranks)) as engine:
            times = []
            for _ in range(rounds * 40):
                start = time.perf_counter()
                engine.executor.collective_rpc("interrupt")
                times.append(time.perf_counter() - start)
        medians[ranks] = statistics.median(times)
    tell("driver calls both ranks", medians[2], bare)
    tell("driver calls one, which broadcasts", medians[1] + broadcast_object, bare)


def rank_main(rank: int, rendezvous: str, rounds: int, told: Any) -> None:
    """Run everything as one rank of two."""
    import torch

    from omni_core.worker.parallel.rank_group import RankGroup

    torch.set_num_threads(1)
    group = RankGroup.connect(rank, 2, rendezvous, timeout_s=120.0)
    compare(group, "row parallel", "cfg_parallel_size", large(), rounds)
    compare(group, "Ulysses", "ulysses_degree", wide_wan(), rounds)
    medians = control_plane(group, rounds)
    if rank == 0:
        told.put(medians)
    group.close()


def main() -> None:
    """Start two ranks and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{Path(folder) / 'store'}"
        arguments = (rendezvous, options.rounds, told)
        ranks = [context.Process(target=rank_main, args=(rank, *arguments)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            raise SystemExit("a rank failed")
    if importlib.util.find_spec("omni_exec_torchrun") is not None:
        driver_calls(options.rounds, *told.get())


if __name__ == "__main__":
    main()
