"""What requests and configurations share: number types that refuse booleans, and readable validation errors."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, get_args

import pydantic
from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from omni_core.errors import closest
from omni_core.timeouts import MOST_SECONDS

# Other names of values, which no comparison of spellings would find.
_OTHER_NAMES = {
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "single": "float32",
    "full": "float32",
    "numpy": "np",
    "array": "np",
    "pillow": "pil",
    "image": "pil",
    "torch": "pt",
    "tensor": "pt",
    "latents": "latent",
}


def _refuse_bool(value: Any) -> Any:
    # str(dtype) is "bool" for numpy and "torch.bool" for torch
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        raise PydanticCustomError("truth_value", "a number is expected here, not a truth value")
    return value


def plain_int(value: Any) -> Any:
    """Turn numpy and torch integers into `int`, so that strict validation takes them and pickles stay small."""
    _refuse_bool(value)
    if isinstance(value, int):
        return int.__int__(value)  # of a subclass too, whatever it makes of comparing and hashing
    if isinstance(value, (float, str)):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def _plain_float(value: Any) -> Any:
    """Turn scalars of numpy and torch into `float`."""
    _refuse_bool(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, str) or not hasattr(type(value), "__float__"):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # several elements
        return value


def plain_text(value: Any) -> Any:
    """Turn a subclass of `str` into `str`: it may hash and compare as it likes, or raise.

    Raises:
        ValueError: It is not text: half of a surrogate pair, which no tokenizer takes and no file holds.
    """
    if not isinstance(value, str):
        return value
    text = str.__str__(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"character {error.start} is half of a surrogate pair, and no text") from None
    return text


Int = Annotated[int, BeforeValidator(plain_int)]
PositiveInt = Annotated[int, Field(ge=1), BeforeValidator(plain_int)]
Float = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_plain_float)]
Milliseconds = Annotated[float, Field(ge=0, le=60_000, allow_inf_nan=False), BeforeValidator(_plain_float)]
Seconds = Annotated[float, Field(gt=0, le=MOST_SECONDS, allow_inf_nan=False), BeforeValidator(_plain_float)]


def explain(error: pydantic.ValidationError, subject: str, fields: Mapping[str, FieldInfo]) -> str:
    """Say in plain words what is wrong with each field and what would be right.

    Args:
        error: What pydantic raised.
        subject: What was being built, such as `"request"` or `"configuration"`.
        fields: The fields that the subject has, by name.

    Returns:
        One line per problem, each with the closest valid name or value where there is one.
    """
    lines = [_explain_one(dict(problem), subject, fields) for problem in error.errors(include_url=False)]
    if len(lines) == 1:
        return f"Invalid {subject}: {lines[0]}"
    return f"Invalid {subject}, {len(lines)} problems:\n" + "\n".join(f"  - {line}" for line in lines)


def described(value: Any) -> str:
    """Return what to call a value in a message: plain ones as they are, others by their type. Never fails."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return _shorten(value)
    return f"a {type(value).__name__}"


def nearest_option(value: Any, options: Iterable[str]) -> str | None:
    """Return the one of `options` that `value` is most likely meant to be, or None.

    Args:
        value: Text, or a class such as `numpy.float16`.
        options: What is valid.
    """
    known = list(options)
    plain = str(getattr(value, "__name__", value)).strip().lower().removeprefix("torch.")
    other = _OTHER_NAMES.get(plain)
    return other if other in known else closest(plain, known)


def _explain_one(problem: dict[str, Any], subject: str, fields: Mapping[str, FieldInfo]) -> str:
    place = ".".join(str(part) for part in problem["loc"]) or subject
    context = problem.get("ctx", {})
    value = problem.get("input")
    shown = _shorten(value)
    kind = problem["type"]
    if kind == "extra_forbidden":
        near = _did_you_mean(closest(place, fields))
        where = subject if subject.startswith("executor_options") else f"a {subject}"
        return f"there is no field {place!r} in {where}.{near} Fields: {', '.join(fields)}"
    if kind == "literal_error":
        options = [option.strip("'\" ") for option in context["expected"].replace(" or ", ",").split(",")]
        return f"{place} = {shown} is not one of {', '.join(options)}.{_did_you_mean(nearest_option(value, options))}"
    if kind == "value_error":
        return f"{place}: {context['error']}"
    field = fields.get(str(problem["loc"][0])) if problem["loc"] else None
    nearest = _nearest_number(value, field) if field is not None else None
    hint = f" The closest valid value is {nearest}." if nearest is not None else ""
    message = str(problem["msg"])
    return f"{place} = {shown}: {message[0].lower()}{message[1:]}.{hint}"


def _did_you_mean(near: str | None) -> str:
    return f" Did you mean {near!r}?" if near else ""


def _nearest_number(value: Any, field: FieldInfo) -> int | float | None:
    """Return the number that a field takes and that is closest to `value`; None if it takes none, or there is none."""
    kinds = {kind for kind in _parts(field.annotation) if kind in (int, float)}
    if not kinds or not (isinstance(value, str) or hasattr(type(value), "__float__")):
        return None
    try:
        number: int | float = value if isinstance(value, int) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    if isinstance(number, float) and not math.isfinite(number):  # an int can be larger than any float
        return None
    if int in kinds:
        number = int(number) if isinstance(number, int) else round(number)
    for bound in _bounds(field):
        step = 1 if int in kinds else 0
        if (low := getattr(bound, "ge", None)) is not None:
            number = max(number, low)
        if (high := getattr(bound, "le", None)) is not None:
            number = min(number, high)
        if (above := getattr(bound, "gt", None)) is not None and number <= above:
            number = above + step
        if (below := getattr(bound, "lt", None)) is not None and number >= below:
            number = below - step
        if not step and number in (above, below):  # of all numbers above 0, none is the closest
            return None
    return number


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and whatever it is made of: the arms of a union, a type and what is annotated to it."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _bounds(field: FieldInfo) -> Iterator[Any]:
    yield from field.metadata
    for part in _parts(field.annotation):
        if isinstance(part, FieldInfo):
            yield from part.metadata


def _shorten(value: Any, limit: int = 80) -> str:
    try:
        text = repr(value)
    except Exception:  # a caller's object may have a broken __repr__; the message must come out all the same
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"
