"""What requests and configurations share: number types that refuse booleans, and readable validation errors."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Annotated, Any

import pydantic
from pydantic import BeforeValidator, Field

from omni_core.errors import did_you_mean


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is expected here, not a truth value")
    return value


def _plain_int(value: Any) -> Any:
    """Turn numpy and torch integers into `int`, so that strict validation takes them and pickles stay small."""
    _refuse_bool(value)
    if isinstance(value, (int, float, str)):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


Int = Annotated[int, BeforeValidator(_plain_int)]
PositiveInt = Annotated[int, Field(ge=1), BeforeValidator(_plain_int)]
Float = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_refuse_bool)]
Milliseconds = Annotated[float, Field(ge=0, le=60_000, allow_inf_nan=False), BeforeValidator(_refuse_bool)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_refuse_bool)]


def explain(error: pydantic.ValidationError, subject: str, fields: Iterable[str]) -> str:
    """Say in plain words what is wrong with each field and what would be right.

    Args:
        error: What pydantic raised.
        subject: What was being built, such as `"request"` or `"configuration"`.
        fields: Names of the fields that the subject has.

    Returns:
        One line per problem, each with the closest valid name or value where there is one.
    """
    known = list(fields)
    lines = [_explain_one(dict(problem), subject, known) for problem in error.errors(include_url=False)]
    if len(lines) == 1:
        return f"Invalid {subject}: {lines[0]}"
    return f"Invalid {subject}, {len(lines)} problems:\n" + "\n".join(f"  - {line}" for line in lines)


def described(value: Any) -> str:
    """Return what to call a value in a message: plain ones as they are, others by their type. Never fails."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return _shorten(value)
    return f"a {type(value).__name__}"


def _explain_one(problem: dict[str, Any], subject: str, known: list[str]) -> str:
    place = ".".join(str(part) for part in problem["loc"]) or subject
    context = problem.get("ctx", {})
    value = problem.get("input")
    shown = _shorten(value)
    kind = problem["type"]
    if kind == "extra_forbidden":
        return f"there is no field {place!r} in a {subject}.{did_you_mean(place, known)} Fields: {', '.join(known)}"
    if kind == "literal_error":
        options = [option.strip("'\" ") for option in context["expected"].replace(" or ", ",").split(",")]
        return f"{place} = {shown} is not one of {', '.join(options)}.{did_you_mean(str(value), options)}"
    if kind == "value_error":
        return f"{place}: {context['error']}"
    nearest = context.get("ge", context.get("le"))
    hint = f" The closest valid value is {nearest}." if nearest is not None else ""
    message = str(problem["msg"])
    return f"{place} = {shown}: {message[0].lower()}{message[1:]}.{hint}"


def _shorten(value: Any, limit: int = 80) -> str:
    try:
        text = repr(value)
    except Exception:  # a caller's object may have a broken __repr__; the message must come out all the same
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"
