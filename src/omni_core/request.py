"""What a user asks for: one call of the pipeline."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Container, Iterable, Mapping
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from omni_core.errors import RequestError
from omni_core.validation import Float, Int, PositiveInt, Seconds, explain, plain_int, plain_text

# Arguments of diffusers pipelines that a request sets through a field of its own, and that field.
FIELD_OF_ARGUMENT = {
    "num_images_per_prompt": "num_outputs_per_prompt",
    "num_videos_per_prompt": "num_outputs_per_prompt",
    "num_waveforms_per_prompt": "num_outputs_per_prompt",
    "batch_size": "num_outputs_per_prompt",
    "generator": "seed",
}

# Request fields that are handed to the pipeline under their own name.
PASSED_BY_NAME = (
    "prompt",
    "negative_prompt",
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "output_type",
)


def _one_text(value: Any) -> Any:
    # Any iterable but text: lists, tuples, sets, arrays and generators are all meant for several prompts.
    if hasattr(value, "__iter__") and not isinstance(value, (str, bytes, Mapping)):
        raise ValueError(
            "a request has one prompt, not several. Make one request for each: "
            "engine.step([OmniDiffusionRequest(prompt=prompt) for prompt in prompts]) runs them together"
        )
    return value


def _seed(value: Any) -> Any:
    if isinstance(value, int) and value < 0:
        raise ValueError(
            f"{value} cannot be a seed, which is 0 or larger. For a random one, leave seed out: "
            "the output reports which it was"
        )
    return value


PlainText = Annotated[str, BeforeValidator(plain_text)]
MetadataText = Annotated[str, Field(max_length=4096), BeforeValidator(plain_text)]
OneText = Annotated[PlainText, BeforeValidator(_one_text)]
Seed = Annotated[int, BeforeValidator(_seed), BeforeValidator(plain_int)]  # the last one goes first


class OmniDiffusionRequest(BaseModel):
    """One call of the pipeline, with its own seed, size, steps and guidance.

    A field left at None is not passed on: the model's own default holds (the `request_defaults` of the
    configuration or of the model folder, else the pipeline's).

    Raises:
        RequestError: A value is impossible or a field unknown; the message names the closest valid one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    prompt: OneText | None = Field(None, description="What to generate. None for pipelines that take no prompt.")
    negative_prompt: OneText | None = Field(None, description="What to steer away from, where guidance is on.")
    height: PositiveInt | None = Field(None, le=65536, description="Height in pixels.")
    width: PositiveInt | None = Field(None, le=65536, description="Width in pixels.")
    num_inference_steps: PositiveInt | None = Field(None, le=100_000, description="Number of denoising steps.")
    guidance_scale: Float | None = Field(None, description="Weight of classifier-free guidance.")
    num_outputs_per_prompt: PositiveInt = Field(
        1, le=1024, description="Pictures, videos or waveforms made from this request."
    )
    seed: Seed = Field(
        default_factory=lambda: secrets.randbelow(2**32),
        ge=0,
        lt=2**63,
        description="Seed of the random generator. A request without one gets one, and its output reports it.",
    )
    output_type: PlainText | None = Field(
        None, min_length=1, description="Form of the output, as the pipeline knows it: pil, np, pt, latent."
    )
    preview_every: PositiveInt | None = Field(
        None, description="Steps between two small preview pictures in the events. Unset: none."
    )
    previews: PositiveInt | None = Field(
        None, description="So many small preview pictures in the events, evenly spread over the steps. Unset: none."
    )
    priority: Int = Field(0, description="Requests with a larger number go first.")
    timeout_s: Seconds | None = Field(
        None, description="Seconds from submission after which the request ends with finish_reason='timeout'."
    )
    request_id: PlainText = Field(
        default_factory=lambda: uuid.uuid4().hex[:16],
        pattern=r"^[\w.:-]{1,128}$",
        description="Name of the request in logs, events and errors; unique among the requests in flight.",
    )
    metadata: dict[MetadataText, MetadataText] = Field(
        default_factory=dict,
        max_length=64,
        description="Text for plugins, such as a tenant or a trace. It is never given to the pipeline.",
    )
    extra_args: dict[str, Any] = Field(
        default_factory=dict,
        description="Further keywords of the pipeline: image, mask_image, num_frames, class_labels, strength, …",
    )

    def __init__(self, **values: Any) -> None:
        # A request made with seed=None means "choose one", as leaving it out does.
        if values.get("seed", 0) is None:
            del values["seed"]
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise RequestError(explain(error, "request", type(self).model_fields)) from error

    @model_validator(mode="after")
    def _refuse_two_rules_of_previews(self) -> OmniDiffusionRequest:
        if self.previews is not None and self.preview_every is not None:
            raise ValueError("set previews or preview_every, not both: the one says how many, the other how often")
        return self

    @field_validator("extra_args")
    @classmethod
    def _keep_fields_out_of_extra_args(cls, extra_args: dict[str, Any]) -> dict[str, Any]:
        extra_args = {plain_text(name): value for name, value in extra_args.items()}
        for name in extra_args:
            if name in cls.model_fields:
                raise ValueError(f"{name!r} is a field of the request itself; set {name}=…")
            if name in FIELD_OF_ARGUMENT:
                raise ValueError(f"{name!r} is set by the request's field {FIELD_OF_ARGUMENT[name]!r}")
            if name == "return_dict":
                raise ValueError("'return_dict' is always on: the fields of the output are in OmniRequestOutput.output")
            if not name.isidentifier():
                raise ValueError(f"{name!r} is not the name of an argument")
        return extra_args


def refuse_used_ids(requests: Iterable[OmniDiffusionRequest], in_use: Container[str] = ()) -> None:
    """Refuse requests of which one could not be told from another.

    Args:
        requests: Those that are to be taken up together.
        in_use: The ids of those that run.

    Raises:
        RequestError: An id is in use, or is there twice.
    """
    seen: set[str] = set()
    for request in requests:
        name = request.request_id
        if name in in_use:
            raise RequestError(f"Request {name!r} is running already; give the second one another request_id.")
        if name in seen:
            raise RequestError(
                f"Two of the requests have the id {name!r}, so their outputs could not be told apart; give each a "
                "request_id of its own."
            )
        seen.add(name)


def checked_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return `request_defaults`, with those that are fields of a request as a request would hold them.

    Args:
        defaults: Arguments of the pipeline by name. None stands for no default, over one of the model folder.

    Raises:
        ValueError: One is not an argument of pipelines, or has a value that no request could have.
    """
    checked: dict[str, Any] = {}
    for name, value in defaults.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{name!r} is not the name of an argument")
        if name in FIELD_OF_ARGUMENT:
            field = FIELD_OF_ARGUMENT[name]
            raise ValueError(f"{name!r} can have no default: each request sets it, by its field {field!r}")
        if name == "return_dict":
            raise ValueError("'return_dict' is always on: the fields of the output are in OmniRequestOutput.output")
        if name not in OmniDiffusionRequest.model_fields or value is None:
            checked[name] = value
        elif name in PASSED_BY_NAME:
            try:
                checked[name] = getattr(OmniDiffusionRequest(**{name: value}), name)
            except RequestError as error:
                raise ValueError(error.message.removeprefix("Invalid request: ")) from error
        else:
            raise ValueError(
                f"{name!r} can have no default: it is a field of each request, and no argument of the pipeline"
            )
    return checked
