"""Prompts of the test, in forms that training never saw."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .judge import COLOURS

LIGHT = {"yellow", "cyan", "pink", "white"}  # these stand on black where no background is named, all others on white
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# {d}: the digit, {c}: its colour, {b}: the background
HELD_OUT_PLAIN = (
    "{d} drawn with a {c} crayon",
    "draw me a {c} {d} please",
    "would you kindly sketch the number {d} for me, all in {c}",
    "I'd love to see a {d}. Make it {c}!",
    "{c} handwriting of the figure {d}",
    "A BIG {c} {d}",
    "a sticker showing {d} in bright {c}",
    "{d}? {c}, please",
)
HELD_OUT_GROUNDED = (
    "the figure {d} in {c} upon {b}",
    "a {c} {d} standing on a {b} wall",
    "numeral {d}; colour {c}; backdrop {b}",
    "put a {c} {d} onto a {b} background",
    "{c} number {d} over a {b} ground, please",
    "a {b} card with a big {c} {d}",
    "a {c} {d} (background: {b})",
    "with {b} behind it, a {c} {d}",
)


@dataclass(frozen=True)
class Asked:
    """A prompt and what a picture of it must show."""

    prompt: str
    digit: int
    colour: str
    ground: str


def rule(colour: str) -> str:
    """The ground where none is named, or where the named one is the digit's own colour."""
    return "black" if colour in LIGHT else "white"


def _one(rng: random.Random, digit: int, template: str, colour: str, ground: str | None) -> Asked:
    word = str(digit) if rng.random() < 0.25 else DIGITS[digit]
    prompt = template.format(d=word, c=colour, b=ground)
    return Asked(prompt, digit, colour, rule(colour) if ground in (None, colour) else str(ground))


def plain(count: int, templates: tuple[str, ...] = HELD_OUT_PLAIN, *, seed: int = 0) -> list[Asked]:
    """Prompts with no background: every digit and every colour equally often."""
    rng = random.Random(seed)
    names = list(COLOURS)
    return [_one(rng, i % 10, templates[i % len(templates)], names[(i // 10 + i) % 10], None) for i in range(count)]


def grounded(count: int, templates: tuple[str, ...] = HELD_OUT_GROUNDED, *, seed: int = 1) -> list[Asked]:
    """Prompts with a background of another colour."""
    rng = random.Random(seed)
    names = list(COLOURS)
    asked = []
    for i in range(count):
        colour = names[(i // 10 + i) % 10]
        ground = rng.choice([name for name in names if name != colour])
        asked.append(_one(rng, i % 10, templates[i % len(templates)], colour, ground))
    return asked
