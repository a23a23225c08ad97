"""The context of a trace that a client sends along, for the plugins that trace requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# W3C Trace Context: version, trace, the span that asks, flags.
_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[ -~]{0,256})?")
_STATE = re.compile(r"[ -~]{1,512}")


def trace_context(headers: Mapping[str, Any]) -> dict[str, str]:
    """Return `traceparent` and `tracestate` for the metadata of a request; empty if there is no valid `traceparent`.

    Args:
        headers: Of an HTTP request, or what was kept of them.
    """
    parent, state = headers.get("traceparent"), headers.get("tracestate")
    if not isinstance(parent, str) or not _PARENT.fullmatch(parent):
        return {}
    has_state = isinstance(state, str) and _STATE.fullmatch(state)
    return {"traceparent": parent} | ({"tracestate": str(state)} if has_state else {})
