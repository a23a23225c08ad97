"""Colours, the rule of the ground, and captions: many ways to ask for one digit.

The rule: with no background named, the digit stands on plain white, or on black where its colour is light. A background
of the digit's own colour would hide it, so that word is ignored and the rule decides.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 130, 15),
    "yellow": (250, 220, 30),
    "green": (25, 150, 60),
    "cyan": (40, 205, 225),
    "blue": (35, 75, 220),
    "purple": (130, 45, 170),
    "pink": (250, 120, 190),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}
NAMES = tuple(COLOURS)
LIGHT = frozenset({"yellow", "cyan", "pink", "white"})
SYNONYMS = {"purple": "violet", "cyan": "turquoise"}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# {d}: the digit, {c}: its colour, {b}: the background. tests/quality/prompts.py has others, which never enter here.
PLAIN = (
    "a {c} {d}",
    "{c} {d}",
    "{d} {c}",
    "{d}, {c}",
    "{c}, {d}",
    "{c}: {d}",
    "{d}: {c}",
    "{d} in {c}",
    "in {c}, {d}",
    "a {d} in {c}",
    "the digit {d} in {c}",
    "the number {d} in {c}",
    "the numeral {d}, {c}",
    "the number {d}, {c}",
    "the {c} number {d}",
    "a {c} digit {d}",
    "one {c} {d}",
    "a {d} painted {c}",
    "a {d} that is {c}",
    "a {d} which is all {c}",
    "the {d} is {c}",
    "{d} written in {c} ink",
    "{c} ink, the figure {d}",
    "a handwritten {d} in {c} paint",
    "{d} with a {c} pen",
    "a {c} coloured {d}",
    "digit {d}, colour {c}",
    "color {c}, number {d}",
    "{d} as a {c} digit",
    "a {d} of {c} colour",
)
GROUNDED = (
    "a {c} {d} on {b}",
    "{c} {d} on {b}",
    "{c} {d} on a {b} background",
    "{d} in {c} on {b}",
    "a {d} in {c} on {b}",
    "the digit {d} in {c} on a {b} background",
    "the number {d} in {c} on {b} paper",
    "{d}, {c}, {b} background",
    "{d}, {c} on {b}",
    "{c} on {b}, {d}",
    "{c} on {b}: the number {d}",
    "{c} {d}, {b} background",
    "{c} {d}, background {b}",
    "{b} background, {c} {d}",
    "on {b}, a {c} {d}",
    "on a {b} background, a {d} in {c}",
    "a {b} background with a {c} {d}",
    "a {b} picture of a {c} {d}",
    "{b} paper with the digit {d} in {c}",
    "a {b} wall with a {c} {d} on it",
    "a {c} digit {d} against {b}",
    "a {c} {d} against a {b} backdrop",
    "a {c} {d} over {b}",
    "a {c} {d} in front of {b}",
    "a {c} {d} with a {b} background",
    "a {c} coloured {d} upon a {b} ground",
    "{d} written in {c} ink on a {b} page",
    "{d} painted {c} on {b}",
    "{d} ({c} on {b})",
    "number {d}, colour {c}, background {b}",
    "digit: {d}, color: {c}, background: {b}",
    "the {d} is {c} and the background is {b}",
    "the background is {b}, the {d} is {c}",
    "a {d} that is {c}, behind it {b}",
)
DIGIT_ONLY = ("a {d}", "{d}", "the digit {d}", "the number {d}", "a handwritten {d}")
COLOUR_ONLY = ("a {c} digit", "{c}", "something {c}", "a number in {c}", "any {c} number")
GROUND_ONLY = (" on {b}", " on a {b} background", ", {b} background", " on {b} paper")
PREFIXES = (
    "please", "draw", "draw me", "please draw", "paint", "paint me", "make", "make me", "show", "show me", "give me",
    "write", "generate", "create", "i want", "i would like", "can you draw", "could you please draw me", "let me see",
    "a picture of", "an image of", "picture of", "a photo of", "a drawing of", "a painting of", "draw a picture of",
    "an icon of", "here is", "this is", "it is", "now", "hello,", "nice",
)  # fmt: skip
SUFFIXES = (
    "please", "thanks", "thank you", "for me", "now", "handwritten", "in a nice style", "high quality", "very clear",
    "big and bold", "by hand", "as a picture", "centered", "for my little sister", "today",
)  # fmt: skip
_FILLERS = """
and the of to in is it for with as that this but or my your his her our their we you they he she be are was
very really quite just only some any all more most so such also too then here there what who how when where
big small large little tiny huge bold thin thick bright dark light pretty beautiful nice good great lovely
simple clean clear plain fancy cute cool new old happy funny single hand drawn written painted handwritten
style art sketch drawing painting picture image photo poster sign card sheet page paper wall board canvas
crayon pencil brush chalk marker pen ink paint letter figure numeral symbol shape character figure kid child
school math house door cake birthday shirt player bus street sky sea grass sun snow night morning like want
need would could should can will make made get got take put see look help know think love high low quality
detailed resolution sharp best masterpiece background backdrop ground colour color coloured colored filled
standing sitting lying floating placed centered middle left right top bottom front behind under above near
over upon onto against across between inside outside without carrying showing bearing holding having wearing
using made from into by at up down off out about after before
"""
FILLERS = tuple(_FILLERS.split())


@dataclass(frozen=True)
class Subject:
    """What a picture shows: a digit and two colours, by name."""

    digit: int
    colour: str
    ground: str


@dataclass(frozen=True)
class Caption:
    """A prompt and what it settles; None for what it leaves open."""

    text: str
    digit: int | None
    colour: str | None
    ground: str | None


def default_ground(colour: str) -> str:
    """The ground of a digit in this colour when none is named."""
    return "black" if colour in LIGHT else "white"


def draw_subject(rng: random.Random) -> Subject:
    """A random subject; about six in ten stand on the default ground."""
    colour = rng.choice(NAMES)
    ground = default_ground(colour)
    if rng.random() < 0.45:
        ground = rng.choice([name for name in NAMES if name != colour])
    return Subject(rng.randrange(10), colour, ground)


def _name(rng: random.Random, colour: str) -> str:
    return SYNONYMS[colour] if colour in SYNONYMS and rng.random() < 0.2 else colour


def _babble(rng: random.Random) -> str:
    """A word that means nothing: often a common word, sometimes letters at random."""
    if rng.random() < 0.75:
        return rng.choice(FILLERS)
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7)))


def _disturb(rng: random.Random, text: str) -> str:
    """The same request with words around it, between its words, and with other punctuation."""
    if rng.random() < 0.45:
        text = f"{rng.choice(PREFIXES)} {text}"
    if rng.random() < 0.25:
        text = f"{text}{rng.choice((' ', ', '))}{rng.choice(SUFFIXES)}"
    words = text.split()
    if rng.random() < 0.15:
        words = [word for word in words if word not in {"a", "an", "the"}] or words
    if rng.random() < 0.25:
        for _ in range(rng.randint(1, 3)):
            words.insert(rng.randint(0, len(words)), _babble(rng))
    text = " ".join(words)
    if rng.random() < 0.1:
        text = text.replace(",", "").replace(":", "")
    return text + rng.choice(("", "", "", "", ".", "!", "..."))


def caption(rng: random.Random, subject: Subject) -> Caption:
    """A prompt that asks for the subject; one in eight is empty, for classifier-free guidance."""
    draw = rng.random()
    if draw < 0.12:
        return Caption("", None, None, None)
    default = subject.ground == default_ground(subject.colour)
    if draw < 0.21:
        template = rng.choice(DIGIT_ONLY if draw < 0.175 else COLOUR_ONLY)
        if not default or rng.random() < 0.2:
            template += rng.choice(GROUND_ONLY)
    elif draw < 0.25:  # what a negative prompt says that is about the ground
        template = rng.choice(GROUND_ONLY).strip(" ,")
    elif not default or rng.random() < 0.25:
        template = rng.choice(GROUNDED)
    else:
        template = rng.choice(PLAIN)
    ground = subject.ground
    if default and "{c}" in template and rng.random() < 0.15:
        ground = subject.colour  # it would hide the digit, and is ignored
    digit = str(subject.digit) if rng.random() < 0.25 else DIGITS[subject.digit]
    text = template.format(d=digit, c=_name(rng, subject.colour), b=_name(rng, ground))
    if rng.random() < 0.8:
        text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return Caption(
        _disturb(rng, text),
        subject.digit if "{d}" in template else None,
        subject.colour if "{c}" in template else None,
        subject.ground if "{c}" in template or "{b}" in template else None,
    )


def vocabulary() -> list[str]:
    """Every word of the captions, each once, sorted."""
    words: set[str] = set(NAMES) | set(SYNONYMS.values()) | set(DIGITS) | set(FILLERS)
    for text in (*PLAIN, *GROUNDED, *DIGIT_ONLY, *COLOUR_ONLY, *GROUND_ONLY, *PREFIXES, *SUFFIXES):
        plain = text.format(d="", c="", b="")
        words |= {word for word in "".join(c if c.isalpha() else " " for c in plain).split() if len(word) > 1}
    return sorted(words)
