"""Make pictures on two ranks that torchrun started; each works on half of the rows of every forward pass.

    torchrun --nproc-per-node 2 examples/spmd.py FOLDER

Every rank runs all of this program. Rank 0 saves the pictures; all ranks have them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest


def main() -> None:
    """Make ten pictures, and let rank 0 save them."""
    if len(sys.argv) != 2:
        sys.exit("usage: torchrun --nproc-per-node 2 examples/spmd.py FOLDER")
    folder = Path(sys.argv[1])
    config = OmniDiffusionConfig(
        executor_class="torchrun",
        cfg_parallel_size=int(os.environ.get("WORLD_SIZE", "1")),
    )
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    requests = [OmniDiffusionRequest(prompt=f"a red {digit}", seed=seed) for seed, digit in enumerate(digits)]
    with DiffusionEngine(config) as engine:
        outputs = engine.step(requests)
    if int(os.environ.get("RANK", "0")) == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for digit, output in zip(digits, outputs, strict=True):
            output.raise_for_error().images[0].save(folder / f"{digit}.png")
        print(f"{len(outputs)} pictures are in {folder}")


if __name__ == "__main__":
    main()
