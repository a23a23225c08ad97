"""How soon an end is told while eight requests run, in steps of those eight.

    python benchmarks/latency.py [--rounds 15] [--threads 1]

For `inline` and `multiproc`, with the small model that ships with omni:

- `abort`: from `handle.abort()` of one of eight running requests to its end in `handle.result()`;
- `late`: from `engine.submit` of a request of 4 steps, while eight long ones run and there is a free place, to its
  result: its own 4 steps, and what it waits for besides (its turn, its prompt, its picture).

Both in units of one step of the eight, which is measured in the same run: the median over eight requests that run
undisturbed. Prints the median, the middle half and the largest.
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


def step_seconds(engine: Any) -> float:
    """Seconds of one step of eight requests that run undisturbed."""
    outputs = engine.step(requests_of(COMPANY, 60))
    metrics = [output.raise_for_error().metrics for output in outputs]
    return float(statistics.median(one.denoise_s / one.num_steps for one in metrics))


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


def end_all(handles: list[Any]) -> None:
    """Abort what still runs, and wait for it."""
    for handle in handles:
        handle.abort()
    for handle in handles:
        handle.result(60)


def abort_seconds(engine: Any, number: int) -> float:
    """Seconds from an abort to the end that it brings."""
    handles = start_company(engine, number)
    began = time.perf_counter()
    handles[3].abort()
    output = handles[3].result(60)
    seconds = time.perf_counter() - began
    assert output.finish_reason == "aborted"
    end_all(handles)
    return seconds


def late_seconds(engine: Any, number: int) -> float:
    """Seconds from the submission of a short request to its result."""
    handles = start_company(engine, number)
    [late] = requests_of(1, LATE_STEPS, first_seed=100)
    began = time.perf_counter()
    engine.submit(late).result(60).raise_for_error()
    seconds = time.perf_counter() - began
    assert not any(handle.done() for handle in handles), "the long ones had ended before"
    end_all(handles)
    return seconds


def measure(executor: str, rounds: int) -> None:
    """Print the lines of one executor."""
    from omni_core import DiffusionEngine, OmniDiffusionConfig

    figures: dict[str, list[float]] = {"abort": [], "late": []}
    with DiffusionEngine(OmniDiffusionConfig(executor_class=executor, max_num_seqs=COMPANY + 1)) as engine:
        # Each company is verified once, which is no part of what is measured.
        late_seconds(engine, 0)
        abort_seconds(engine, 0)
        steps = [step_seconds(engine)]
        for number in range(rounds):
            figures["abort"].append(abort_seconds(engine, number))
            figures["late"].append(late_seconds(engine, number))
            steps.append(step_seconds(engine))
    step_s = statistics.median(steps)
    for name, seconds in figures.items():
        low, middle, high = statistics.quantiles([one / step_s for one in seconds], n=4)
        print(
            f"{executor:9} {name:5} told after {middle:.1f} steps  (middle half {low:.1f} to {high:.1f}, "
            f"at most {max(seconds) / step_s:.1f}, {rounds} rounds; a step takes {step_s * 1e3:.1f} ms)",
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
