"""Logging: structlog on top of the standard library's loggers under the name `omni_core`."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog

ROOT = "omni_core"

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso"),
]


def get_logger(name: str) -> Any:
    """Return a structlog logger for a module of omni or of a plugin (`name` is its `__name__`).

    It works without `configure_logging`, as a library's logger should: warnings and errors then go wherever the
    program sends those of the standard library's logging. structlog's global configuration is left alone.
    """
    if name.partition(".")[0] != ROOT:
        name = f"{ROOT}.{name}"  # a plugin's: it goes where omni's own go
    return structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def configure_logging(level: str = "warning", style: Literal["auto", "console", "json"] = "auto") -> None:
    """Send omni's log to standard error, for people or (`style="json"`) one JSON object a line.

    May be called again: the last call holds. Does nothing to other loggers.

    Args:
        level: debug, info, warning or error.
        style: console, json, or auto (console, in colours on a terminal).
    """
    renderer: Any
    if style == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    root = logging.getLogger(ROOT)
    for handler in [handler for handler in root.handlers if isinstance(handler, _OmniHandler)]:
        root.removeHandler(handler)
    handler = _OmniHandler()
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False


class _OmniHandler(logging.StreamHandler[Any]):
    """Writes to whatever `sys.stderr` is at the time, so that a redirected stream is honoured."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass
