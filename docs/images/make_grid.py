"""Makes docs/images/digits.png: every digit in colour, by one call of the engine.

Run it with omni installed: `python docs/images/make_grid.py`. The same versions of torch and diffusers give the same
picture again, since every request has a seed.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# One row for each: colour, and background where the model is not to choose it.
ROWS = (("red", None), ("blue", "yellow"), ("white", "green"), ("cyan", "black"))
SCALE, GAP, MARGIN = 2, 6, 6


def prompts() -> list[str]:
    """Return what is asked for, row by row."""
    return [f"a {colour} {digit}" + (f" on {ground}" if ground else "") for colour, ground in ROWS for digit in DIGITS]


def draw(seed: int) -> list[Any]:
    """Return the pictures, made by one call of `DiffusionEngine.step`."""
    from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest

    requests = [OmniDiffusionRequest(prompt=prompt, seed=seed + index) for index, prompt in enumerate(prompts())]
    with DiffusionEngine(OmniDiffusionConfig(max_num_seqs=len(requests), device="cpu")) as engine:
        return [output.raise_for_error().images[0] for output in engine.step(requests)]


def paste(pictures: Sequence[Image]) -> Image:
    """Return the pictures as a grid, enlarged, on white."""
    from PIL import Image

    columns = len(DIGITS)
    side = pictures[0].width * SCALE
    size = [2 * MARGIN + count * (side + GAP) - GAP for count in (columns, math.ceil(len(pictures) / columns))]
    grid = Image.new("RGB", (size[0], size[1]), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        place = (MARGIN + column * (side + GAP), MARGIN + row * (side + GAP))
        grid.paste(picture.resize((side, side), Image.Resampling.BICUBIC), place)
    return grid


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the grid."""
    parser = argparse.ArgumentParser(description="Make the grid of digits in the README with the engine itself.")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "digits.png")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture; the next has the next")
    options = parser.parse_args(arguments)
    grid = paste(draw(options.seed))
    grid.save(options.output, optimize=True)
    print(f"{options.output}: {len(prompts())} pictures, {grid.width} x {grid.height}")


if __name__ == "__main__":
    main()
