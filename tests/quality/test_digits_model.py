"""The model that ships with the package is measured: 200 pictures at its default settings, and what steers it.

To see the figures: pytest tests/quality --log-cli-level=INFO
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from . import prompts
from .judge import Judge, Verdict
from .prompts import Asked

FOLDER = Path(str(files("omni_core"))) / "models" / "digits"
DEFAULTS = json.loads((FOLDER / "request_defaults.json").read_text(encoding="utf-8"))
TRAINING = Path(__file__).parents[2] / "training" / "prompts.py"

Draw = Callable[..., list[Image.Image]]
_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def draw() -> Draw:
    """Draws one picture for each prompt with the stock pipeline, picture i from seed i."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)

    def run(texts: list[str], *, seed: int = 0, negative: str | None = None, **overrides: Any) -> list[Image.Image]:
        images: list[Image.Image] = []
        for start in range(0, len(texts), 50):
            batch = texts[start : start + 50]
            generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
            call = {**DEFAULTS, **overrides}
            if negative is not None:
                call["negative_prompt"] = [negative] * len(batch)
            images += pipeline(batch, generator=generators, **call).images
        return images

    return run


@pytest.fixture(scope="module")
def judge() -> Judge:
    """A judge that reads at least 95 % of the real digits that it was not fitted on."""
    judge = Judge()
    assert judge.accuracy >= 0.95
    return judge


def _rates(asked: list[Asked], seen: list[Verdict]) -> dict[str, float]:
    """The shares of pictures with the right digit, colour, ground, and of legible ones; also logged."""
    pairs = list(zip(asked, seen, strict=True))
    for one, verdict in pairs:
        if (verdict.digit, verdict.colour, verdict.ground) != (one.digit, one.colour, one.ground):
            _log.info("wrong: %s -> %s", one, verdict)
    rates = {
        "digit": sum(v.digit == a.digit for a, v in pairs) / len(pairs),
        "colour": sum(v.colour == a.colour for a, v in pairs) / len(pairs),
        "ground": sum(v.ground == a.ground for a, v in pairs) / len(pairs),
        "legible": sum(v.contrast > 30 and v.dirt < 0.02 for _, v in pairs) / len(pairs),
    }
    _log.info("%d pictures: %s", len(pairs), {name: f"{rate:.1%}" for name, rate in rates.items()})
    return rates


@pytest.mark.timeout(240)
def test_held_out_prompts_give_the_digit_and_the_colours(draw: Draw, judge: Judge) -> None:
    plain, grounded = prompts.plain(100), prompts.grounded(100)
    asked = plain + grounded
    seen = [judge.look(image) for image in draw([one.prompt for one in asked])]
    rates = _rates(asked, seen)
    assert rates["digit"] >= 0.95
    assert rates["colour"] >= 0.95
    assert rates["ground"] >= 0.95
    without = _rates(plain, seen[: len(plain)])
    assert min(without.values()) >= 0.95, "prompts that name no background"
    _rates(grounded, seen[len(plain) :])


def test_every_digit_in_every_colour_stands_on_its_plain_ground(draw: Draw, judge: Judge) -> None:
    asked = prompts.plain(100, ("a {c} {d}", "{d} in {c}", "{c} {d}"), seed=3)
    rates = _rates(asked, [judge.look(image) for image in draw([one.prompt for one in asked], seed=1000)])
    assert min(rates.values()) >= 0.95


def test_a_ground_of_the_digits_own_colour_is_ignored(draw: Draw, judge: Judge) -> None:
    asked = [
        Asked(f"a {colour} {prompts.DIGITS[i]} on {colour}", i, colour, prompts.rule(colour))
        for i, colour in enumerate(
            ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "black", "white")
        )
    ]
    rates = _rates(asked * 2, [judge.look(image) for image in draw([one.prompt for one in asked * 2], seed=2000)])
    assert min(rates.values()) >= 0.8


def test_templates_are_really_held_out() -> None:
    if not TRAINING.exists():
        pytest.skip("the training scripts are not here")
    source = TRAINING.read_text(encoding="utf-8")
    for template in (*prompts.HELD_OUT_PLAIN, *prompts.HELD_OUT_GROUNDED):
        assert f'"{template}"' not in source


def test_the_folder_is_small_and_complete() -> None:
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    assert size <= 4_000_000
    index = json.loads((FOLDER / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert not [file for file in FOLDER.rglob("*") if file.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]


def test_guidance_makes_it_do_what_the_prompt_says(draw: Draw, judge: Judge) -> None:
    asked = prompts.plain(60) + prompts.grounded(40)
    texts = [one.prompt for one in asked]

    def right(images: list[Image.Image]) -> int:
        seen = [judge.look(image) for image in images]
        return sum(
            (v.digit, v.colour, v.ground) == (a.digit, a.colour, a.ground) for a, v in zip(asked, seen, strict=True)
        )

    guided, unguided = right(draw(texts)), right(draw(texts, guidance_scale=1.0))
    _log.info("all three right of %d: guided %d, without guidance %d", len(asked), guided, unguided)
    assert guided >= unguided + 3


def test_a_negative_prompt_steers_away(draw: Draw, judge: Judge) -> None:
    texts = [f"a {prompts.DIGITS[i % 10]}" for i in range(60)]  # colour and ground are left open

    def grounds(negative: str | None) -> list[str]:
        return [judge.look(image).ground for image in draw(texts, negative=negative)]

    free, no_white, no_black = grounds(None), grounds("on white"), grounds("on black")
    for name, seen in (("none", free), ("on white", no_white), ("on black", no_black)):
        _log.info("negative prompt %s: %d on white, %d on black", name, seen.count("white"), seen.count("black"))
    assert no_white.count("white") < free.count("white") / 2
    assert no_black.count("black") < free.count("black") / 2
