"""Reading a body: JSON, or a form with files."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from omni_serve.errors import ApiError

MAX_FIELDS = 100
MAX_PART_BYTES = 1 << 20
# `lora[name]` and `lst[]`, as OpenAI's client writes tables and lists into a form.
_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_MOST_LEVELS = 8
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Text that is not to be taken for a number.
_TEXTS = frozenset({"prompt", "negative_prompt", "model", "user", "size", "input"})


@dataclass(slots=True)
class ReadBody:
    """A body.

    Attributes:
        fields: Its fields by name; lists and tables are nested.
        files: The bytes of its files by the name of the field, in order.
    """

    fields: Any
    files: dict[str, list[bytes]] = field(default_factory=dict)


async def read_body(request: Request, max_files: int) -> ReadBody:
    """Return the body of a request.

    Args:
        request: With its body not read yet.
        max_files: Most files of a form.

    Raises:
        ApiError: It is neither JSON nor a form, or not well-formed.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await _read_form(request, max_files)
    if kind not in ("", "application/json") and not kind.endswith("+json"):
        raise ApiError(415, f"A body of JSON or a form is expected, not {kind}.", code="unsupported_media_type")
    body = await request.body()
    try:
        fields = json.loads(body, parse_constant=_refuse_constant)
        if _SURROGATE.search(body):
            json.dumps(fields, ensure_ascii=False).encode()  # half of a pair is no text
        return ReadBody(fields)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {error}", code="invalid_json") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


async def _read_form(request: Request, max_files: int) -> ReadBody:
    try:
        async with request.form(max_files=max_files, max_fields=MAX_FIELDS, max_part_size=MAX_PART_BYTES) as form:
            return await _of_form(form)
    except MultiPartException as error:
        raise ApiError(400, f"The form is not well-formed: {error.message}", code="invalid_form") from None


async def _of_form(form: FormData) -> ReadBody:
    body = ReadBody({})
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            body.files.setdefault(key.removesuffix("[]"), []).append(await value.read())
        else:
            _put(body.fields, key, value)
    return body


def _put(fields: dict[str, Any], key: str, text: str) -> None:
    matched = _KEY.fullmatch(key)
    if matched is None:
        raise ApiError(400, f"{key!r} is not the name of a field.", param=key, code="invalid_form")
    name = matched[1]
    levels = re.findall(r"\[([^\[\]]*)\]", matched[2])
    if len(levels) > _MOST_LEVELS:
        raise ApiError(400, f"{key!r} has too many levels.", param=name, code="invalid_form")
    value: Any = text if name in _TEXTS else _plain(text)
    place: Any = fields
    for level, following in zip([name, *levels], [*levels, None], strict=True):
        last = following is None
        if level == "" and isinstance(place, list):
            if last:
                place.append(value)
                return
            place.append([] if following == "" else {})
            place = place[-1]
        elif level != "" and isinstance(place, dict):
            if last:
                if level in place:
                    raise ApiError(400, f"{key!r} is there twice.", param=name, code="invalid_form")
                place[level] = value
                return
            place = place.setdefault(level, [] if following == "" else {})
        else:
            raise ApiError(400, f"{key!r} is a list or a table in one place and not in another.", param=name)


def _plain(text: str) -> Any:
    """Return what a text of a form stands for: JSON where it is JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text, parse_constant=_refuse_constant)
    return {"True": True, "False": False}.get(text, text)
