"""What an executor did instead of what it promised: one plain sentence for what a test raised."""

from __future__ import annotations

import ast
import functools
import linecache
import re
import types
from reprlib import Repr
from typing import Any

_MOST = 300
# How `found OP wanted` reads when it does not hold.
_WORDS = {
    "==": "is {found}, not {wanted}",
    "!=": "is {found}",
    "is": "is {found}, not {wanted}",
    "is not": "is {found}",
    "<": "is {found}, and must be less than {wanted}",
    "<=": "is {found}, and must be no more than {wanted}",
    ">": "is {found}, and must be more than {wanted}",
    ">=": "is {found}, and must be at least {wanted}",
    "in": "is {found}, which is not in {wanted}",
    "not in": "is {found}, which is in {wanted}",
}
_short = Repr()
_short.maxstring, _short.maxother, _short.maxlist, _short.maxtuple = 70, 90, 8, 8


def comparison(operator: str, found: Any, wanted: Any) -> str:
    """Return what to say of a comparison that does not hold, without what was compared: see `what_it_did`."""
    words = _WORDS.get(operator, f"does not hold: {{found}} {operator} {{wanted}}")
    return words.format(found=_short.repr(found), wanted=_short.repr(wanted))


def what_it_did(error: BaseException, compared: str = "") -> str:
    """Return a sentence for what a test of the suite raised: a failed assertion, a missing error, or another error.

    Args:
        error: What it raised.
        compared: What `comparison` gave for the last one that did not hold.
    """
    text = str(error).strip()
    if text.startswith("DID NOT RAISE"):
        names = re.findall(r"(\w+)(?:'>|,|\)|$)", text.removeprefix("DID NOT RAISE").strip())
        return _sentence(f"nothing was raised, where {' or '.join(names)} was to be")
    if type(error).__name__ == "Failed":  # pytest.fail
        return _sentence(_first_line(text))
    if not isinstance(error, AssertionError):
        kind = type(error).__name__
        return _sentence(f"{kind}: {_first_line(text)}" if text else kind)
    mismatch = re.search(r"Expected regex: (.*)\n\s*Actual message: (.*)", text)
    if mismatch is not None:
        return _sentence(f"the error says {mismatch[2]}, in which {mismatch[1]} is not found")
    statement = _assertion_of(error)
    if statement is not None and statement.msg is None:
        if compared and isinstance(statement.test, ast.Compare):
            return _sentence(f"{ast.unparse(statement.test.left)} {compared}")
        return _sentence(f"it does not hold that {ast.unparse(statement.test)}")
    return _sentence(_first_line(text) or "an assertion does not hold")


def _assertion_of(error: BaseException) -> ast.Assert | None:
    """Return the assertion that failed, if its source is there."""
    frame, line = None, 0
    trace: types.TracebackType | None = error.__traceback__
    while trace is not None:
        frame, line = trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next
    if frame is None:
        return None
    found = [node for node in _assertions(frame.f_code.co_filename) if node.lineno <= line <= (node.end_lineno or 0)]
    return found[-1] if found else None


@functools.lru_cache(maxsize=32)
def _assertions(file: str) -> list[ast.Assert]:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return []
    return [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def _first_line(text: str) -> str:
    return text.partition("\nassert ")[0].partition("\n")[0].removesuffix(" It stands here:").strip()


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    text = text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."
