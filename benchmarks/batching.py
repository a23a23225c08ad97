"""What continuous batching gains: 16 requests of mixed steps, guidance and seeds, side by side in one run.

    python benchmarks/batching.py [--rounds 3] [--requests 16]

For the small model and for random DiTs of three sizes, with one thread and on one core, so that nobody has more of the
machine than the others:

- `loop`: bare diffusers, one request after another;
- `static`: bare diffusers with a static batch of all requests of equal steps, where the pipeline takes a list;
- `engine`: this engine;
- `ideal`: nothing but the forward passes that the engine ran, with made-up inputs of the same shapes, and everything
  else that a request needs (encoding, scheduler, decoding) once per request as in the loop.

Prints throughput as a ratio to the loop, mean rows per forward, and how many steps of the others a late arrival waited
for its first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Model:
    """A pipeline to measure with.

    Attributes:
        name: What to call it.
        build: Makes it.
        arguments: Keywords for request number `n`.
        denoiser: Name of its denoiser.
    """

    name: str
    build: Callable[[], Any]
    arguments: Callable[[int], dict[str, Any]]
    denoiser: str = "transformer"


@dataclass(slots=True)
class Recorder:
    """Notes the inputs of a denoiser's forward passes while it is installed on the pipeline."""

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    seconds: float = 0.0

    def install(self, module: Any) -> None:
        """Begin to note."""
        forward = module.forward

        def noted(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return forward(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began
                self.calls.append((args, kwargs))

        module.forward = noted


def small() -> Model:
    """The model that ships with omni."""
    import json

    import torch
    from diffusers import DiffusionPipeline

    from omni_core.worker.pipeline.loader import REQUEST_DEFAULTS_FILE, SMALL_MODEL

    defaults = json.loads((SMALL_MODEL / REQUEST_DEFAULTS_FILE).read_text(encoding="utf-8"))
    colours = ("red", "green", "blue", "purple")
    digits = ("seven", "three", "two", "nine", "four")

    def arguments(number: int) -> dict[str, Any]:
        return {
            **defaults,
            "prompt": f"a {colours[number % 4]} {digits[number % 5]}",
            "num_inference_steps": (16, 20, 24)[number % 3],
            "guidance_scale": (4.0, 1.0, 6.0, 3.0)[number % 4],
        }

    return Model("small", lambda: DiffusionPipeline.from_pretrained(SMALL_MODEL, dtype=torch.float32), arguments)


def random_dit(name: str, tokens_on_a_side: int, layers: int, heads: int) -> Model:
    """A DiT with random weights, class-conditional with guidance."""

    def build() -> Any:
        import torch
        from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

        torch.manual_seed(0)
        transformer = DiTTransformer2DModel(
            sample_size=2 * tokens_on_a_side,
            num_layers=layers,
            patch_size=2,
            num_attention_heads=heads,
            attention_head_dim=64,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=1000,
        )
        vae = AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=4)
        return DiTPipeline(transformer.eval(), vae.eval(), DDIMScheduler())

    def arguments(number: int) -> dict[str, Any]:
        return {
            "class_labels": [number],
            "num_inference_steps": (6, 8, 10)[number % 3],
            "guidance_scale": (4.0, 1.0)[number % 2],
        }

    return Model(name, build, arguments)


def request_of(arguments: dict[str, Any], seed: int, **more: Any) -> Any:
    """The request that asks for what the bare call gets as keywords."""
    from omni_core import OmniDiffusionRequest

    fields = {name: value for name, value in arguments.items() if name in OmniDiffusionRequest.model_fields}
    extra = {name: value for name, value in arguments.items() if name not in fields}
    return OmniDiffusionRequest(**fields, extra_args=extra, seed=seed, **more)


def run_loop(pipeline: Any, model: Model, count: int) -> float:
    """Seconds of the bare calls, one after another."""
    import torch

    began = time.perf_counter()
    for number in range(count):
        pipeline(**model.arguments(number), generator=torch.Generator().manual_seed(number))
    return time.perf_counter() - began


def run_static(pipeline: Any, model: Model, count: int) -> float:
    """Seconds of bare calls with lists: one per number of steps and guidance, which a static batch must share."""
    import torch

    groups: dict[tuple[Any, ...], list[int]] = {}
    for number in range(count):
        arguments = model.arguments(number)
        groups.setdefault((arguments["num_inference_steps"], arguments["guidance_scale"]), []).append(number)
    began = time.perf_counter()
    for numbers in groups.values():
        merged = dict(model.arguments(numbers[0]))
        if "prompt" in merged:
            merged["prompt"] = [model.arguments(number)["prompt"] for number in numbers]
        else:
            merged["class_labels"] = [model.arguments(number)["class_labels"][0] for number in numbers]
        pipeline(**merged, generator=[torch.Generator().manual_seed(number) for number in numbers])
    return time.perf_counter() - began


def run_engine(engine: Any, model: Model, count: int) -> float:
    """Seconds of the same requests through the engine."""
    requests = [request_of(model.arguments(number), number) for number in range(count)]
    began = time.perf_counter()
    for output in engine.step(requests):
        output.raise_for_error()
    return time.perf_counter() - began


def run_forwards(module: Any, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> float:
    """Seconds of nothing but the given forward passes."""
    import torch

    began = time.perf_counter()
    with torch.no_grad():
        for args, kwargs in calls:
            module(*args, **kwargs)
    return time.perf_counter() - began


def measure(model: Model, count: int, rounds: int) -> None:
    """Print the lines of one model."""
    from omni_core import DiffusionEngine, OmniDiffusionConfig

    bare = model.build()
    bare.set_progress_bar_config(disable=True)
    timed = model.build()
    timed.set_progress_bar_config(disable=True)
    loop_recorder = Recorder()
    loop_recorder.install(getattr(timed, model.denoiser))
    recorded = model.build()
    config = OmniDiffusionConfig(max_num_seqs=count)
    # One pass to find which forward passes the engine runs once its kinds of calls are verified.
    engine_recorder = Recorder()
    with DiffusionEngine(config, pipeline=recorded) as engine:
        run_engine(engine, model, count)
        engine_recorder.install(getattr(recorded, model.denoiser))
        run_engine(engine, model, count)
    calls = engine_recorder.calls
    rest_s = run_loop(timed, model, count) - loop_recorder.seconds
    module = getattr(bare, model.denoiser)
    with DiffusionEngine(config, pipeline=model.build()) as engine:
        run_engine(engine, model, count)
        before = engine.stats().stacking
        times: dict[str, list[float]] = {"loop": [], "static": [], "engine": [], "ideal": []}
        for _ in range(rounds):
            times["loop"].append(run_loop(bare, model, count))
            times["static"].append(run_static(bare, model, count))
            times["engine"].append(run_engine(engine, model, count))
            times["ideal"].append(run_forwards(module, calls) + rest_s)
        after = engine.stats().stacking
        late = steps_of_others_before_late(engine, model)
    assert before is not None
    assert after is not None
    rows = (after.rows - before.rows) / (after.forwards - before.forwards)
    ratios = {
        side: statistics.median(loop / other for loop, other in zip(times["loop"], times[side], strict=True))
        for side in ("static", "engine", "ideal")
    }
    share = statistics.median(ideal / engine_s for ideal, engine_s in zip(times["ideal"], times["engine"], strict=True))
    print(
        f"{model.name:8} engine {ratios['engine']:.2f} x loop   static {ratios['static']:.2f} x   "
        f"ideal {ratios['ideal']:.2f} x   engine / ideal {share:.2f}   rows per forward {rows:.1f}   "
        f"late arrival: first step after {late} of the others'   (loop {statistics.median(times['loop']):.2f} s)",
        flush=True,
    )


def steps_of_others_before_late(engine: Any, model: Model) -> int:
    """Most steps that one of 8 long requests made between the arrival of a short one and its first step."""
    long = {**model.arguments(0), "num_inference_steps": 40}
    handles = [engine.submit(request_of(long, number)) for number in range(8)]
    next(event for event in handles[0].events() if event.kind == "step" and event.step >= 3)
    before = [_steps(handle) for handle in handles]
    late = engine.submit(request_of({**model.arguments(1), "num_inference_steps": 2}, 99))
    next(event for event in late.events() if event.kind == "step" and event.step >= 1)
    made = [_steps(handle) - count for handle, count in zip(handles, before, strict=True)]
    for handle in handles:
        handle.abort()
    for handle in handles:
        handle.result()
    return max(made)


def _steps(handle: Any) -> int:
    return max((event.step for event in handle.past_events()), default=0)


def main() -> None:
    """Measure every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--only", choices=["small", "tokens16", "tokens64", "tokens256"])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    import torch

    torch.set_num_threads(1)
    models: dict[str, Callable[[], Model]] = {
        "small": small,
        "tokens16": lambda: random_dit("tokens16", 4, 6, 3),
        "tokens64": lambda: random_dit("tokens64", 8, 6, 4),
        "tokens256": lambda: random_dit("tokens256", 16, 8, 6),
    }
    for name, make in models.items():
        if options.only in (None, name):
            measure(make(), options.requests, options.rounds)


if __name__ == "__main__":
    main()
