"""Reading a body: JSON, or a form with files."""

from __future__ import annotations

import asyncio
import collections
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from omni_serve.errors import ApiError
from omni_serve.requests.bodies import is_words

# Bytes of a JSON body from which it is decoded beside the event loop.
_LARGE = 256 << 10
MAX_FIELDS = 100
MAX_PART_BYTES = 1 << 20
# Of forms that hold no files.
_MAX_PLAIN_FORM_BYTES = 1 << 20
# About how many values a JSON body may have. A million would hold up everybody else for seconds.
_MAX_VALUES = 100_000
# What a body may be encoded in. Python knows codecs that fail in ways of their own, and such as make halves of
# surrogate pairs.
_CHARSETS = frozenset({"", "utf-8", "utf8", "us-ascii", "ascii"})
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
# `lora[name]` and `lst[]`, as OpenAI's client writes tables and lists into a form.
_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_MOST_LEVELS = 8
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# Text that is not to be taken for a number.
_TEXTS = frozenset({"model", "user", "size", "input"})


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
    kind, charset = _content_type(request)
    is_form = kind in _FORMS
    if not is_form and kind not in ("", "application/json") and not kind.endswith("+json"):
        raise _unsupported(f"A body of JSON or a form is expected, not {kind}.")
    if charset not in _CHARSETS:
        raise _unsupported(f"A body is UTF-8, not {charset}.")
    if (encoding := request.headers.get("content-encoding", "").strip().lower()) not in ("", "identity"):
        raise _unsupported(f"A body that is compressed ({encoding}) is not read: send it as it is.")
    if kind == _FORMS[1] and len(await request.body()) > _MAX_PLAIN_FORM_BYTES:
        raise ApiError(413, "The form is too large: send multipart/form-data or JSON.", code="body_too_large")
    return await _read_form(request, max_files) if is_form else ReadBody(await _of_bytes(await request.body()))


def _content_type(request: Request) -> tuple[str, str]:
    """Return the kind of a body and the encoding of its texts, as Starlette's parser of forms will read them."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    return kind.decode("latin-1"), options.get(b"charset", b"").decode("latin-1").lower()


def _unsupported(message: str) -> ApiError:
    return ApiError(415, message, code="unsupported_media_type")


async def _of_bytes(body: bytes) -> Any:
    return _decoded(body) if len(body) < _LARGE else await asyncio.to_thread(_decoded, body)


def _decoded(body: bytes) -> Any:
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > _MAX_VALUES:
        raise ApiError(400, f"The body has more than {_MAX_VALUES} values.", code="invalid_json")
    try:
        # `json.loads` of bytes would take UTF-16 too, and halves of surrogate pairs.
        return _of_json(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {error}", code="invalid_json") from None


def _of_json(text: str) -> Any:
    """Return what JSON stands for.

    Raises:
        ValueError: It is none, or says what JSON cannot mean: a key twice, a number beyond all floats, half of a
            surrogate pair.
        RecursionError: It is nested too deeply.
    """
    value = json.loads(
        text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_duplicates
    )
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        raise ValueError(f"{counts.most_common(1)[0][0][:100]!r} is there twice")
    return table


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
    innermost = levels[-1] if levels and levels[-1] else name
    value: Any = text if innermost in _TEXTS or is_words(innermost) else _plain(key, text)
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


def _plain(key: str, text: str) -> Any:
    """Return what a text of a form stands for: JSON where it is JSON.

    Raises:
        ApiError: It is a list or a table that no JSON body could hold.
    """
    try:
        return _of_json(text)
    except json.JSONDecodeError:
        pass
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith(("{", "[")):
            raise ApiError(400, f"{key}: {error}", param=key, code="invalid_form") from None
    return {"True": True, "False": False}.get(text, text)
