"""How soon an end is told while eight requests run, in steps of those eight.

    python benchmarks/latency.py [--rounds 15] [--threads 1]

For `inline` and `multiproc`, with the small model that ships with omni:

- `abort`: from `handle.abort()` of one of eight running requests to its end in `handle.result()`;
- `late`: from `engine.submit` of a request of 4 steps, while eight long ones run and there is a free place, to its
  result: its own 4 steps, and what it waits for besides (its turn, its prompt, its picture).

Both in units of one step of the eight in the same round, so that noise of the machine hits both. Prints the median, the
middle half and the largest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

LONG_STEPS = 400
LATE_STEPS = 4
COMPANY = 8
EXECUTORS = ("inline", "multiproc")


def requests_of(count: int, num_steps: int, first_seed: int = 0) -> list[Any]:
    """Requests whose calls can all be stacked."""
    from omni_core import OmniDiffusionRequest

    return [
        OmniDiffusionRequest(prompt="a red seven", num_inference_steps=num_steps, seed=first_seed + number)
        for number in range(count)
    ]


def start_company(engine: Any, number: int) -> list[Any]:
    """Submit eight long requests, and return their handles when all have made some steps.

    Args:
        engine: Where they run.
        number: Of the round. Each waits for another number of steps, so that what is done to them comes at any place
            of a step.
    """
    handles = engine.submit_all(requests_of(COMPANY, LONG_STEPS))
    for handle in handles:
        next(event for event in handle.events(60) if event.kind == "step" and event.step >= 4)
    time.sleep(0.0037 * number)
    return handles  # type: ignore[no-any-return]


def end_all(handles: list[Any]) -> float:
    """Abort what still runs, and return the seconds of one of its steps in this round."""
    for handle in handles:
        handle.abort()
    metrics = [handle.result(60).metrics for handle in handles]
    return float(statistics.median(one.denoise_s / one.num_steps for one in metrics))


def steps_until_abort(engine: Any, number: int) -> tuple[float, float]:
    """Steps from an abort to the end that it brings, and the seconds of a step."""
    handles = start_company(engine, number)
    began = time.perf_counter()
    handles[3].abort()
    output = handles[3].result(60)
    seconds = time.perf_counter() - began
    assert output.finish_reason == "aborted"
    step_s = end_all(handles)
    return seconds / step_s, step_s


def steps_until_late(engine: Any, number: int) -> tuple[float, float]:
    """Steps from the submission of a short request to its result, and the seconds of a step."""
    handles = start_company(engine, number)
    [late] = requests_of(1, LATE_STEPS, first_seed=100)
    began = time.perf_counter()
    engine.submit(late).result(60).raise_for_error()
    seconds = time.perf_counter() - began
    assert not any(handle.done() for handle in handles), "the long ones had ended before"
    step_s = end_all(handles)
    return seconds / step_s, step_s


def measure(executor: str, rounds: int) -> None:
    """Print the lines of one executor."""
    from omni_core import DiffusionEngine, OmniDiffusionConfig

    found: dict[str, list[tuple[float, float]]] = {"abort": [], "late": []}
    with DiffusionEngine(OmniDiffusionConfig(executor_class=executor, max_num_seqs=COMPANY + 1)) as engine:
        # Each company is verified once, which is no part of what is measured.
        steps_until_late(engine, 0)
        steps_until_abort(engine, 0)
        for number in range(rounds):
            found["abort"].append(steps_until_abort(engine, number))
            found["late"].append(steps_until_late(engine, number))
    for name, rows in found.items():
        steps = [row[0] for row in rows]
        low, middle, high = statistics.quantiles(steps, n=4)
        step_ms = statistics.median(row[1] for row in rows) * 1e3
        print(
            f"{executor:9} {name:5} told after {middle:.1f} steps  (middle half {low:.1f} to {high:.1f}, "
            f"at most {max(steps):.1f}, {rounds} rounds; a step takes {step_ms:.1f} ms)",
            flush=True,
        )


def main() -> None:
    """Measure both executors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=EXECUTORS)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    import torch

    torch.set_num_threads(options.threads)
    for executor in EXECUTORS:
        if options.only in (None, executor):
            measure(executor, options.rounds)


if __name__ == "__main__":
    main()
