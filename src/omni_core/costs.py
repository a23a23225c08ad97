"""What requests cost, learned from those that ran. Pure Python: no torch, no threads, no clock of its own.

Requests of one *kind* cost the same for each step: of the same size, with the same number of outputs, frames and
seconds, with or without guidance. How long a step takes depends on how many requests a replica works on, and on how
well their calls can be stacked, so it is learned for each number of them, as a whole: nothing is assumed of stacking.
Only what was never measured is guessed, from the nearest number or the nearest kinds that were.
"""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from omni_core.pipeline_info import DURATION_ARGUMENTS, FRAME_ARGUMENTS, USUAL_SIDE, PipelineInfo, is_number
from omni_core.request import PASSED_BY_NAME, OmniDiffusionRequest

# Kinds that are remembered; of more, those that were not seen for longest are forgotten.
_MOST_KINDS = 256
# Requests at work on one replica that are told apart one by one; more, by the next power of two.
_MOST_TOGETHER = 64
# Steps that a running mean goes back.
_WINDOW_STEPS = 200.0
# Weight of the newest measurement in the other running means.
_NEWEST = 0.3
# What is left of the weight of the first request of a kind when it has ended: it has warmed things up besides.
_FIRST_KEEPS = 0.1
# Seconds above which a measurement is none.
_MOST_SECONDS = 1e7
# A number of frames, steps and so on from which on it is none.
_MOST_NUMBER = 1e9
# How much more a step costs with guidance, where only steps without it were measured: rows for both.
_GUIDED = 2


class CostKind(NamedTuple):
    """What decides how long a step of a request takes.

    Attributes:
        height: Height in pixels; None if that is not known.
        width: Width in pixels; None if that is not known.
        outputs: Outputs that it makes.
        frames: Frames of each; None for what has none.
        is_guided: Whether it is run with classifier-free guidance.
        seconds: Length of what is sound, in whole seconds; None for what is none.
    """

    height: int | None = None
    width: int | None = None
    outputs: int = 1
    frames: int | None = None
    is_guided: bool = False
    seconds: int | None = None

    @property
    def size(self) -> float:
        """What costs of kinds that were not measured are scaled by."""
        sides = (self.height or USUAL_SIDE) * (self.width or USUAL_SIDE)
        length = (self.frames or 1) * (self.seconds or 1)
        return float(sides * self.outputs * length * (_GUIDED if self.is_guided else 1))


def kind_of(request: OmniDiffusionRequest, info: PipelineInfo | None) -> tuple[CostKind, int | None]:
    """Return the kind of a request, and how many steps it takes; None if that is not known. Fails never.

    Args:
        request: Which. It need not fit the pipeline.
        info: The pipeline's defaults, where they are known.
    """
    values: dict[str, Any] = {} if info is None else {**info.own_defaults, **info.defaults}
    given = {name: getattr(request, name) for name in PASSED_BY_NAME}
    values |= {name: value for name, value in given.items() if value is not None}
    values |= request.extra_args
    is_guided = any(_number(values, name) > 1 for name in ("guidance_scale", "true_cfg_scale"))
    kind = CostKind(
        _whole(values, "height"),
        _whole(values, "width"),
        request.num_outputs_per_prompt,
        _first(values, FRAME_ARGUMENTS),
        is_guided,
        _first(values, DURATION_ARGUMENTS),
    )
    return kind, _num_steps(values, info)


def _num_steps(values: Mapping[str, Any], info: PipelineInfo | None) -> int | None:
    steps = _whole(values, "num_inference_steps")
    rule = None if info is None else info.strength_rule
    if steps is None or rule is None or not rule.applies(values):
        return steps
    strength = _number(values, "strength")
    return max(1, rule.steps(steps, strength)) if 0 < strength <= 1 else steps


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Return the first of some numbers that is there, as a whole one of at least 1."""
    number = next((found for name in names if (found := _number(values, name)) > 0), 0.0)
    return math.ceil(number) if number > 0 else None


def _whole(values: Mapping[str, Any], name: str) -> int | None:
    number = _number(values, name)
    return int(number) if number >= 1 else None


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    # Nothing else is compared: what it would do then is not known.
    return float(value) if is_number(value) and 0 <= value < _MOST_NUMBER else 0.0


@dataclass(slots=True)
class _Rounds:
    """Seconds of a replica, and the steps that a request did in them; older ones count for less."""

    seconds: float = 0.0
    steps: float = 0.0

    def add(self, seconds: float, steps: float) -> None:
        if self.steps > _WINDOW_STEPS:
            self.keep(_WINDOW_STEPS / self.steps)
        self.seconds += seconds
        self.steps += steps

    def keep(self, part: float) -> None:
        self.seconds *= part
        self.steps *= part


@dataclass(slots=True)
class _Learned:
    """What was measured of one kind."""

    number: int
    rounds: dict[int, _Rounds] = field(default_factory=dict)
    # With how many together it was measured last: what is known for other numbers is older.
    newest: int = 1
    start_seconds: float | None = None
    end_seconds: float | None = None
    steps: float | None = None
    ended: int = 0

    def curve(self) -> list[tuple[int, float]]:
        """Return how long it takes until each of so many requests has done a step, for the numbers measured.

        More requests together take no less than fewer, and no more than one after the other: what disagrees with the
        newest measurement gives way to it.
        """
        found = sorted((together, one.seconds / one.steps) for together, one in self.rounds.items())
        at = next(index for index, (together, _) in enumerate(found) if together == self.newest)
        for index in range(at - 1, -1, -1):
            found[index] = _agreeing(found[index], found[index + 1])
        for index in range(at + 1, len(found)):
            found[index] = _agreeing(found[index], found[index - 1])
        return found


def _agreeing(one: tuple[int, float], newer: tuple[int, float]) -> tuple[int, float]:
    together, seconds = one
    in_proportion = newer[1] * together / newer[0]
    return together, min(max(seconds, min(newer[1], in_proportion)), max(newer[1], in_proportion))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request of one kind costs, as far as that is known.

    Attributes:
        start_seconds: Seconds from its begin to its first step (encoding the prompt).
        end_seconds: Seconds from its last step to its end (decoding).
        num_steps: Steps that requests of this kind took on average.
    """

    start_seconds: float
    end_seconds: float
    num_steps: float
    _curves: tuple[tuple[float, list[tuple[int, float]]], ...]

    def round_seconds(self, together: float) -> float:
        """Return how long a step takes on a replica that works on so many requests: each of them does one meanwhile.

        Args:
            together: Requests at work there, from 1; a mean of several cases may be between two numbers.
        """
        return sum(weight * _at(curve, together) for weight, curve in self._curves)


def _at(curve: list[tuple[int, float]], together: float) -> float:
    first, last = curve[0], curve[-1]
    if together <= first[0]:
        # Between no gain by stacking, with which it would fall in proportion, and the most, with which it would not.
        return first[1] * math.sqrt(together / first[0])
    if together >= last[0]:
        return last[1] * together / last[0]  # as without any gain by stacking: better too long than too short
    index = bisect.bisect_left(curve, (together, -1.0))
    (low, before), (high, after) = curve[index - 1], curve[index]
    return before + (after - before) * (together - low) / (high - low)


class Costs:
    """Running means of what requests cost, by kind. Not for several threads at a time.

    What is no number of seconds is passed over.
    """

    def __init__(self) -> None:
        self._kinds: OrderedDict[CostKind, _Learned] = OrderedDict()
        self._number = 0
        # The kinds of which steps were measured, by size; None: to be made again.
        self._by_size: list[tuple[float, int, CostKind]] | None = None

    def __len__(self) -> int:
        return len(self._kinds)

    def add_round(self, kind: CostKind, together: int, seconds: float, steps: int = 1) -> None:
        """Learn from steps that a request has done.

        Args:
            kind: Its kind.
            together: How many requests its replica was working on, itself included.
            seconds: How long it took.
            steps: How many it did.
        """
        if not is_seconds(seconds) or not 1 <= steps < _MOST_NUMBER:
            return
        learned = self._of(kind)
        if not learned.rounds:
            self._by_size = None
        together = max(1, together)
        if together > _MOST_TOGETHER:
            together = 1 << (together - 1).bit_length()
        learned.newest = together
        learned.rounds.setdefault(together, _Rounds()).add(seconds, steps)

    def add_start(self, kind: CostKind, seconds: float) -> None:
        """Learn how long a request took to its first step."""
        if is_seconds(seconds):
            learned = self._of(kind)
            learned.start_seconds = _mean(learned.start_seconds, seconds)

    def add_total(self, kind: CostKind, steps: int) -> None:
        """Learn how many steps a request takes in all."""
        if 1 <= steps < _MOST_NUMBER:
            learned = self._of(kind)
            learned.steps = _mean(learned.steps, steps)

    def add_end(self, kind: CostKind, seconds: float) -> None:
        """Learn how long a request that has finished took from its last step."""
        learned = self._of(kind)
        if is_seconds(seconds):
            learned.end_seconds = _mean(learned.end_seconds, seconds)
        learned.ended += 1
        if learned.ended == 1:
            for one in learned.rounds.values():
                one.keep(_FIRST_KEEPS)

    def cost(self, kind: CostKind) -> Cost | None:
        """Return what a request of a kind costs; None if no kind was measured yet.

        A kind that was not measured is placed between the next smaller and the next larger one, in proportion to the
        logarithms of their sizes, or scaled from the nearest.
        """
        learned = self._kinds.get(kind)
        if learned is not None and learned.rounds:
            return _cost([(1.0, 1.0, learned)])
        if self._by_size is None:
            found = [(one.size, known.number, one) for one, known in self._kinds.items() if known.rounds]
            self._by_size = sorted(found, key=lambda entry: entry[:2])
        if not self._by_size:
            return None
        size = kind.size
        place = bisect.bisect_right(self._by_size, size, key=lambda entry: entry[0])
        near = self._by_size[max(0, place - 1) : place + 1]
        scaled = [(size / other, self._kinds[one]) for other, _, one in near]
        if len(near) == 1 or near[0][0] == size:
            return _cost([(1.0, *scaled[0])])
        upper = math.log(size / near[0][0]) / math.log(near[1][0] / near[0][0])
        return _cost([(1.0 - upper, *scaled[0]), (upper, *scaled[1])])

    def _of(self, kind: CostKind) -> _Learned:
        learned = self._kinds.get(kind)
        if learned is None:
            self._number += 1
            learned = self._kinds[kind] = _Learned(self._number)
            if len(self._kinds) > _MOST_KINDS:
                self._kinds.popitem(last=False)
                self._by_size = None
        else:
            self._kinds.move_to_end(kind)
        return learned


def _cost(parts: list[tuple[float, float, _Learned]]) -> Cost:
    """Return a cost made of what was learned of kinds: each with its weight, and by what it is scaled."""

    def mixed(value: Callable[[_Learned, float], float | None]) -> float:
        return sum(weight * (value(learned, scale) or 0.0) for weight, scale, learned in parts)

    return Cost(
        start_seconds=mixed(lambda learned, scale: learned.start_seconds),  # a prompt is as long whatever the size
        end_seconds=mixed(lambda learned, scale: (learned.end_seconds or 0.0) * scale),
        num_steps=mixed(lambda learned, scale: learned.steps or 1.0),
        _curves=tuple((weight * scale, learned.curve()) for weight, scale, learned in parts),
    )


def is_seconds(value: Any) -> bool:
    """Return whether something is a number of seconds that can be reckoned with."""
    return isinstance(value, (int, float)) and 0 <= value < _MOST_SECONDS


def _mean(old: float | None, new: float) -> float:
    return float(new) if old is None else (1 - _NEWEST) * old + _NEWEST * new
