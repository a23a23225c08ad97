"""What the engine costs: one request through it against the bare diffusers call, same pipeline, same arguments.

    python benchmarks/overhead.py [--rounds 15] [--threads 1]

Both sides alternate in one run, so that noise of the machine hits both. Prints the median of the paired ratios with
their middle half, and the median time of each side. A pipeline of its own for each side, as two users would have.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any


def small() -> tuple[Callable[[], Any], dict[str, Any]]:
    """The model that ships with omni, at its default settings."""
    import json

    import torch
    from diffusers import DiffusionPipeline

    from omni_core.worker.pipeline.loader import REQUEST_DEFAULTS_FILE, SMALL_MODEL

    defaults = json.loads((SMALL_MODEL / REQUEST_DEFAULTS_FILE).read_text(encoding="utf-8"))
    return (
        lambda: DiffusionPipeline.from_pretrained(SMALL_MODEL, dtype=torch.float32),
        {"prompt": "a red seven", **defaults},
    )


def large() -> tuple[Callable[[], Any], dict[str, Any]]:
    """A random DiT of 12 layers of width 384 with 256 tokens: about 26 million parameters."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    def build() -> Any:
        torch.manual_seed(0)
        transformer = DiTTransformer2DModel(
            sample_size=32,
            num_layers=12,
            patch_size=2,
            num_attention_heads=6,
            attention_head_dim=64,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=1000,
        )
        vae = AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=4)
        return DiTPipeline(transformer.eval(), vae.eval(), DDIMScheduler())

    return build, {"class_labels": [1], "num_inference_steps": 10, "guidance_scale": 4.0}


def request_of(arguments: dict[str, Any]) -> Any:
    """The request that asks for what the bare call gets as keywords."""
    from omni_core import OmniDiffusionRequest

    fields = {name: value for name, value in arguments.items() if name in OmniDiffusionRequest.model_fields}
    extra = {name: value for name, value in arguments.items() if name not in fields}
    return OmniDiffusionRequest(**fields, extra_args=extra, seed=1)


def measure(name: str, build: Callable[[], Any], arguments: dict[str, Any], rounds: int) -> None:
    """Print one line for one model."""
    import numpy as np
    import torch

    from omni_core import DiffusionEngine

    bare = build()
    bare.set_progress_bar_config(disable=True)

    def run_bare() -> Any:
        return bare(**arguments, generator=torch.Generator().manual_seed(1)).images[0]

    with DiffusionEngine(pipeline=build()) as engine:

        def run_engine() -> Any:
            return engine.step([request_of(arguments)])[0].raise_for_error().images[0]

        if not np.array_equal(np.asarray(run_bare()), np.asarray(run_engine())):
            raise SystemExit(f"{name}: the two sides give different pictures, so their times mean nothing")
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds):
            sides = [(0, run_bare), (1, run_engine)]
            for side, run in sides if number % 2 else reversed(sides):
                start = time.perf_counter()
                run()
                times[side].append(time.perf_counter() - start)
    ratios = [engine_s / bare_s for bare_s, engine_s in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{name:6} engine / bare = {middle:.3f}  (middle half {low:.3f} to {high:.3f}, {rounds} rounds)   "
        f"bare {statistics.median(times[0]) * 1e3:.1f} ms, engine {statistics.median(times[1]) * 1e3:.1f} ms"
    )


def main() -> None:
    """Measure both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    import torch

    torch.set_num_threads(options.threads)
    for name, model in (("small", small), ("large", large)):
        measure(name, *model(), options.rounds)


if __name__ == "__main__":
    main()
