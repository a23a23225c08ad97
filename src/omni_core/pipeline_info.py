"""What a loaded pipeline takes, known to the driver without the pipeline itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omni_core.errors import ConfigError, RequestError, did_you_mean
from omni_core.request import FIELD_OF_ARGUMENT, OmniDiffusionRequest

# Request fields that are handed to the pipeline under their own name.
_PASSED_BY_NAME = (
    "prompt",
    "negative_prompt",
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "output_type",
)
# What pipelines call the number of outputs, in the order of preference where one has several.
_NUMBER_OF_OUTPUTS = tuple(argument for argument, name in FIELD_OF_ARGUMENT.items() if name == "num_outputs_per_prompt")


@dataclass(frozen=True, slots=True)
class PipelineInfo:
    """The signature of a pipeline and the defaults that hold for it.

    Attributes:
        class_name: Name of the pipeline's class.
        model: What it was loaded from, for messages and picture metadata.
        parameters: Keywords of its `__call__`, in order.
        required: Those without a default.
        accepts_any: Whether `__call__` has a `**kwargs`.
        defaults: Arguments for requests that do not set them (model folder's, then configuration's).
        device: Where it computes, such as `cuda:0`.
        dtype: Precision of its denoiser, such as `bfloat16`.
    """

    class_name: str
    model: str
    parameters: tuple[str, ...]
    required: tuple[str, ...] = ()
    accepts_any: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in self.defaults:
            if name in FIELD_OF_ARGUMENT or name == "return_dict" or not self._takes(name):
                raise ConfigError(
                    f"request_defaults: {name!r} cannot be a default for {self.class_name}."
                    f"{did_you_mean(name, self._settable)} It takes: {', '.join(self._settable)}."
                )

    def arguments(self, request: OmniDiffusionRequest) -> dict[str, Any]:
        """Return the keywords to call the pipeline with, all but `generator`.

        Raises:
            RequestError: The pipeline does not take something that the request sets, or needs something that it
                does not set.
        """
        arguments = dict(self.defaults)
        for name in _PASSED_BY_NAME:
            value = getattr(request, name)
            if value is not None:
                arguments[name] = value
        arguments.update(request.extra_args)
        for name in arguments:
            if not self._takes(name):
                raise RequestError(
                    f"Request {request.request_id!r}: {self.class_name} takes no {name!r}."
                    f"{did_you_mean(name, self._settable)} It takes: {', '.join(self._settable)}."
                )
        if request.num_outputs_per_prompt > 1:
            arguments[self._number_of_outputs(request)] = request.num_outputs_per_prompt
        missing = [name for name in self.required if name not in arguments and name != "generator"]
        if missing:
            raise RequestError(
                f"Request {request.request_id!r}: {self.class_name} needs {', '.join(map(repr, missing))}; "
                "set it on the request or in extra_args."
            )
        return arguments

    @property
    def takes_generator(self) -> bool:
        """Whether the pipeline draws from a generator that it is given, instead of torch's global one."""
        return "generator" in self.parameters

    @property
    def _settable(self) -> list[str]:
        hidden = {"return_dict", *FIELD_OF_ARGUMENT}
        return [name for name in self.parameters if name not in hidden]

    def _takes(self, name: str) -> bool:
        return name in self.parameters or self.accepts_any

    def _number_of_outputs(self, request: OmniDiffusionRequest) -> str:
        for name in _NUMBER_OF_OUTPUTS:
            if name in self.parameters:
                return name
        raise RequestError(
            f"Request {request.request_id!r}: {self.class_name} makes one output per request; "
            f"submit {request.num_outputs_per_prompt} requests instead of num_outputs_per_prompt="
            f"{request.num_outputs_per_prompt}."
        )
