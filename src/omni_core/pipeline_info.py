"""What a loaded pipeline takes, known to the driver without the pipeline itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeGuard

from omni_core.errors import ConfigError, RequestError, did_you_mean
from omni_core.request import FIELD_OF_ARGUMENT, PASSED_BY_NAME, OmniDiffusionRequest, checked_defaults
from omni_core.validation import nearest_option

# What pipelines call the number of outputs, in the order of preference where one has several.
_NUMBER_OF_OUTPUTS = tuple(argument for argument, name in FIELD_OF_ARGUMENT.items() if name == "num_outputs_per_prompt")


# What pipelines call the number of pictures of a video, and the length of sound in seconds.
FRAME_ARGUMENTS = ("num_frames", "video_length")
DURATION_ARGUMENTS = ("audio_length_in_s", "audio_end_in_s", "audio_duration", "audio_duration_s")
# Pixels of a side that neither a request nor the pipeline's defaults give.
USUAL_SIDE = 512


@dataclass(frozen=True, slots=True)
class StrengthRule:
    """How many of its steps a pipeline takes that begins with a picture of the user's.

    Attributes:
        rounds_down: Whether it takes `int(steps * strength)` steps; otherwise that is rounded up.
        unless: Arguments in whose presence the rule does not hold.
    """

    rounds_down: bool
    unless: tuple[str, ...] = ()

    def applies(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether it holds for a call with these arguments."""
        values = map(arguments.get, self.unless)
        return all(value is None or value is False for value in values)  # nothing else is compared: it may be an array

    def steps(self, num_inference_steps: int, strength: float) -> int:
        """Return how many steps are taken."""
        wanted = num_inference_steps * strength
        wanted = min(int(wanted) if self.rounds_down else wanted, num_inference_steps)
        return num_inference_steps - int(max(num_inference_steps - wanted, 0))


@dataclass(frozen=True, slots=True)
class PipelineInfo:
    """The signature of a pipeline and the defaults that hold for it.

    Attributes:
        class_name: Name of the pipeline's class.
        model: What it was loaded from, for messages and picture metadata.
        parameters: Keywords of its `__call__`, in order; of a stock pipeline, those too that it takes by `**kwargs`.
        required: Those without a default.
        accepts_any: Whether `__call__` has a `**kwargs` of which it is not known what it takes.
        defaults: Arguments for requests that do not set them (model folder's, then configuration's).
        device: Where it computes, such as `cuda:0`.
        dtype: Precision of its denoiser, such as `bfloat16`.
        ignored: Keywords that it has and that its code never reads.
        components: Names of its parts, which are no keywords.
        output_types: Values of `output_type` that it knows; empty if that is not known.
        size_multiple: What height and width must be multiples of; 1 if that is not known.
        sides_go_together: Whether it replaces both height and width where only one of them is given.
        own_defaults: Defaults of its `__call__` that are numbers.
        strength_rule: How many steps it takes at a given `strength`, if it has one.
    """

    class_name: str
    model: str
    parameters: tuple[str, ...]
    required: tuple[str, ...] = ()
    accepts_any: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    ignored: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    output_types: tuple[str, ...] = ()
    size_multiple: int = 1
    sides_go_together: bool = False
    own_defaults: Mapping[str, int | float] = field(default_factory=dict)
    strength_rule: StrengthRule | None = None

    def __post_init__(self) -> None:
        try:
            checked_defaults(self.defaults)
        except ValueError as error:
            raise ConfigError(f"request_defaults: {error}.") from error
        for name, value in self.defaults.items():
            problem = self._problem(name, value)
            if problem is not None:
                raise ConfigError(f"request_defaults: {problem}")

    def arguments(self, request: OmniDiffusionRequest) -> dict[str, Any]:
        """Return the keywords to call the pipeline with, all but `generator`.

        Raises:
            RequestError: The pipeline does not take something that the request sets, or needs something that it
                does not set, or takes no step with it.
        """
        given = {name: getattr(request, name) for name in PASSED_BY_NAME}
        given = {name: value for name, value in given.items() if value is not None} | request.extra_args
        for name, value in given.items():
            problem = self._problem(name, value)
            if problem is not None:
                raise RequestError(f"Request {request.request_id!r}: {problem}")
        arguments = {**self.defaults, **given}
        if request.num_outputs_per_prompt > 1:
            arguments[self._number_of_outputs(request)] = request.num_outputs_per_prompt
        missing = [name for name in self.required if name not in arguments and name != "generator"]
        if missing:
            raise RequestError(
                f"Request {request.request_id!r}: {self.class_name} needs {', '.join(map(repr, missing))}; "
                "set it on the request or in extra_args."
            )
        self._refuse_one_side(request, arguments)
        self._refuse_no_steps(request, arguments)
        return arguments

    @property
    def takes_generator(self) -> bool:
        """Whether the pipeline draws from a generator that it is given, instead of torch's global one."""
        return "generator" in self.parameters

    @property
    def _settable(self) -> list[str]:
        hidden = {"return_dict", *FIELD_OF_ARGUMENT, *self.ignored}
        return [name for name in self.parameters if name not in hidden]

    def _problem(self, name: str, value: Any) -> str | None:
        """Return why an argument cannot be given to the pipeline, or None."""
        if name in self.ignored:
            return f"{self.class_name} has an argument {name!r} and makes no use of it; leave it out."
        if name not in self.parameters and not self.accepts_any:
            takes = f"It takes: {', '.join(self._settable)}."
            if name in self.components:
                return (
                    f"{self.class_name} takes no {name!r}, which is a part of the pipeline: set it where the pipeline "
                    f"is made, in the function that `model` names or in the model's folder. {takes}"
                )
            return f"{self.class_name} takes no {name!r}.{did_you_mean(name, self._settable)} {takes}"
        if name == "output_type" and isinstance(value, str) and self.output_types and value not in self.output_types:
            near = nearest_option(value, self.output_types)
            hint = f" Did you mean {near!r}?" if near else ""
            return f"{self.class_name} knows no output_type {value!r}.{hint} It knows: {', '.join(self.output_types)}."
        if name in ("height", "width") and isinstance(value, int) and value % self.size_multiple:
            below = value - value % self.size_multiple
            valid = [size for size in (below, below + self.size_multiple) if size > 0]
            return (
                f"{name} = {value} is no multiple of {self.size_multiple}, as {self.class_name} needs it. "
                f"The closest valid values are {' and '.join(map(str, valid))}."
            )
        return None

    def _refuse_one_side(self, request: OmniDiffusionRequest, arguments: Mapping[str, Any]) -> None:
        given = [name for name in ("height", "width") if name in arguments]
        if self.sides_go_together and len(given) == 1:
            other = "width" if given == ["height"] else "height"
            raise RequestError(
                f"Request {request.request_id!r}: {self.class_name} makes no use of {given[0]} without {other}; "
                "set both, or none."
            )

    def _refuse_no_steps(self, request: OmniDiffusionRequest, arguments: Mapping[str, Any]) -> None:
        rule = self.strength_rule
        if rule is None or not rule.applies(arguments):
            return
        steps, strength = (
            arguments.get(name, self.own_defaults.get(name)) for name in ("num_inference_steps", "strength")
        )
        if type(steps) is not int or not isinstance(strength, Real) or rule.steps(steps, float(strength)) >= 1:
            return
        least = math.ceil(10_000 / steps) / 10_000 if rule.rounds_down else 0.01
        remedy = f"a strength of {least:g} or more"
        if float(strength) > 0:
            remedy = f"num_inference_steps={math.ceil(1 / float(strength))} or more, or {remedy}"
        raise RequestError(
            f"Request {request.request_id!r}: {self.class_name} takes no step with strength = {strength} and "
            f"num_inference_steps = {steps}: strength times steps is {float(strength) * steps:g}. Set {remedy}."
        )

    def _number_of_outputs(self, request: OmniDiffusionRequest) -> str:
        for name in _NUMBER_OF_OUTPUTS:
            if name in self.parameters:
                return name
        raise RequestError(
            f"Request {request.request_id!r}: {self.class_name} makes one output per request; "
            f"submit {request.num_outputs_per_prompt} requests instead of num_outputs_per_prompt="
            f"{request.num_outputs_per_prompt}."
        )


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number, one of numpy's included; nothing else is compared or reckoned with."""
    return isinstance(value, Real)
