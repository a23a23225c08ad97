"""What the bodies of requests may hold: OpenAI's fields, omni's, and any keyword of the pipeline.

The models check what a field may be, wherever it came from: in a form, numbers and booleans are text. They are also
what `/openapi.json` shows.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from omni_serve.errors import ApiError

BodyT = TypeVar("BodyT", bound="Body")

# No pipeline has so many keywords, or such long ones.
_MOST_FIELDS = 200
_LONGEST_NAME = 128
# As vLLM-Omni and SGLang call a table of further fields.
_TABLES = ("extra_params", "diffusers_kwargs")
_WORDS = re.compile(r"(?!num_)(.*_)?(prompt|lyrics)(_\d+)?")
# Of a video or of sound, in seconds.
MOST_SECONDS = 3600
SIZE_PATTERN = r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$"
Size = Annotated[str, Field(pattern=SIZE_PATTERN, description='"WIDTHxHEIGHT" in pixels, or "auto".')]


def _none_of_empty(value: Any) -> Any:
    return None if value == "" else value  # a form has no other way to leave a number out


OptionalInt = Annotated[int | None, BeforeValidator(_none_of_empty)]
OptionalFloat = Annotated[float | None, BeforeValidator(_none_of_empty)]


class Body(BaseModel):
    """What every request for something to be made may hold.

    What it does not name is a keyword of the pipeline, at the top level or in `extra_params` or `diffusers_kwargs`, as
    vLLM-Omni and SGLang call it.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    prompt: str | None = Field(None, description="What to make.")
    model: str | None = Field(None, max_length=1024, description="The served model.")
    user: str | None = Field(None, max_length=4096, description="Of whom it is; plugins are told.")
    size: Size | None = None
    height: OptionalInt = Field(None, ge=1, le=65536, description="Pixels.")
    width: OptionalInt = Field(None, ge=1, le=65536, description="Pixels.")
    negative_prompt: str | None = Field(None, description="What to steer away from.")
    num_inference_steps: OptionalInt = Field(None, ge=1, description="Denoising steps.")
    guidance_scale: OptionalFloat = Field(None, description="Weight of classifier-free guidance.")
    seed: OptionalInt = Field(None, ge=0, lt=2**63, description="The same seed gives the same output again.")
    priority: int = Field(0, ge=-(2**31), lt=2**31, description="Requests with a larger number go first.")
    timeout_s: OptionalFloat = Field(None, gt=0, description="Seconds after which the request is given up.")
    extra_params: dict[str, Any] | None = Field(None, description="Fields that do not stand at the top level.")
    diffusers_kwargs: dict[str, Any] | None = Field(None, description="The same.")

    def keywords(self) -> dict[str, Any]:
        """Return the keywords of the pipeline that have no field here."""
        return {name: value for name, value in (self.model_extra or {}).items() if value is not None}

    def sides(self) -> dict[str, int]:
        """Return height and width in pixels, where the body says them.

        Raises:
            ApiError: It says them twice.
        """
        given = {name: side for name in ("height", "width") if (side := getattr(self, name)) is not None}
        if self.size in (None, "auto"):
            return given
        if given:
            raise ApiError(400, f"size and {' and '.join(given)} say the same: leave one out.", param="size")
        width, _, height = str(self.size).partition("x")
        return {"width": int(width), "height": int(height)}


class ImageBody(Body):
    """For pictures."""

    n: int = Field(1, ge=1, description="How many.")
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(95, ge=0, le=100, description="Quality of JPEG and WebP.")
    response_format: Literal["b64_json", "url"] = "b64_json"
    stream: bool = Field(False, description="Whether to send events, with partial pictures.")
    partial_images: int = Field(0, ge=0, le=20, description="Partial pictures of each, evenly over its steps.")
    progress: bool = Field(False, description="Whether a stream also tells of steps, of the queue and of time left.")
    # OpenAI's, for its own models.
    quality: str | None = Field(None, max_length=100, description="Has no effect.")
    background: str | None = Field(None, description="Has no effect.")
    moderation: str | None = Field(None, description="Has no effect.")
    style: str | None = Field(None, description="Has no effect.")
    input_fidelity: str | None = Field(None, description="Has no effect.")
    # vLLM-Omni's benchmark sends it to every model.
    bot_task: str | None = Field(None, description="Has no effect.")


class VideoBody(Body):
    """For videos."""

    seconds: OptionalFloat = Field(None, gt=0, le=MOST_SECONDS, description="Length; sets num_frames.")
    fps: OptionalFloat = Field(None, gt=0, le=240, description="Frames a second.")


class SoundBody(Body):
    """For sound."""

    seconds: OptionalFloat = Field(
        None, gt=0, le=MOST_SECONDS, description="Length; sets audio_length_in_s or audio_end_in_s."
    )


class SpeechBody(SoundBody):
    """For sound at once, as OpenAI's `/v1/audio/speech` has it."""

    input: str | None = Field(None, description="What to make; the same as prompt.")
    response_format: Literal["wav"] = "wav"
    voice: Any = Field(None, description="Has no effect.")
    instructions: str | None = Field(None, description="Has no effect.")
    speed: OptionalFloat = Field(None, description="Has no effect; leave it out or 1.")


def is_words(name: str) -> bool:
    """Return whether a keyword of a pipeline holds words, which may look like numbers or addresses."""
    return _WORDS.fullmatch(name) is not None


def parse(model: type[BodyT], fields: Any) -> BodyT:
    """Return a body that was checked.

    Args:
        model: What it is to be.
        fields: What was decoded of it.

    Raises:
        ApiError: A field is wrong.
    """
    if not isinstance(fields, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    flat = _flat(fields)
    if len(flat) > _MOST_FIELDS:
        raise ApiError(400, f"There are {len(flat)} fields; {_MOST_FIELDS} are allowed.", code="invalid_value")
    for name in flat:
        if len(name) > _LONGEST_NAME:
            shown = f"{name[:_LONGEST_NAME]}…"
            raise ApiError(400, f"There is no field {shown!r}.", param=shown, code="invalid_value")
    try:
        return model.model_validate(flat)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"]))
        raise ApiError(400, f"{param}: {first['msg']}.", param=param, code="invalid_value") from None


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields with those of the tables at the top level. Null is what is not there: OpenAI's clients send it."""
    flat = {name: value for name, value in fields.items() if name not in _TABLES and value is not None}
    for table in _TABLES:
        inner = fields.get(table)
        if not isinstance(inner, dict):
            if inner is not None:
                raise ApiError(400, f"{table} must be an object.", param=table, code="invalid_value")
            continue
        for name, value in inner.items():
            if name in flat or name in _TABLES:
                raise ApiError(400, f"{name!r} stands in {table} and elsewhere.", param=name, code="invalid_value")
            if value is not None:
                flat[name] = value
    return flat
