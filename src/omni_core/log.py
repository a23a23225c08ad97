"""Logging: structlog on top of the standard library's loggers under the name `omni_core`.

omni is a library: it has loggers, and leaves handlers, levels and formats to the program. The command line and worker
processes are programs of omni's own; they call `configure_logging`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog

ROOT = "omni_core"


def get_logger(name: str) -> Any:
    """Return a structlog logger for a module of omni or of a plugin (`name` is its `__name__`).

    Its records go wherever the program sends those of the standard library's logging: as text with the fields as
    `name=value`, and with all of it in the attribute `omni`, a dictionary. structlog's global configuration is left
    alone.
    """
    if name.partition(".")[0] != ROOT:
        name = f"{ROOT}.{name}"  # a plugin's: it goes where omni's own go
    return structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, structlog.contextvars.merge_contextvars, _to_record],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def set_level(level: str) -> None:
    """Set the least level of omni's own loggers, for which somebody has asked.

    Args:
        level: debug, info, warning or error.
    """
    logging.getLogger(ROOT).setLevel(level.upper())


def configure_logging(level: str = "warning", style: Literal["auto", "console", "json"] = "auto") -> None:
    """Send omni's log to standard error, for people or (`style="json"`) one JSON object a line.

    For programs that have no logging of their own. May be called again: the last call holds. Does nothing to other
    loggers.

    Args:
        level: debug, info, warning or error.
        style: console, json, or auto (console, in colours on a terminal).
    """
    renderer: Any
    if style == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        is_terminal = getattr(_standard_error(), "isatty", lambda: False)
        renderer = structlog.dev.ConsoleRenderer(colors=is_terminal())
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            _from_record,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    root = logging.getLogger(ROOT)
    for handler in [handler for handler in root.handlers if isinstance(handler, _OmniHandler)]:
        root.removeHandler(handler)
    handler = _OmniHandler()
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.propagate = False
    set_level(level)


class _OmniHandler(logging.Handler):
    """Writes to whatever `sys.stderr` is at the time, so that a redirected stream is honoured; a closed one is none."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            stream = _standard_error()
            if stream is None:
                return
            stream.write(f"{self.format(record)}\n")
            stream.flush()
        except Exception:
            self.handleError(record)


def _standard_error() -> Any:
    # None in a process that was started without it, as daemons are; closed where a program closed it.
    # What a program puts in its place may have no more than `write`.
    return None if sys.stderr is None or getattr(sys.stderr, "closed", False) else sys.stderr


def _to_record(logger: Any, method: str, event: Any) -> tuple[tuple[str], dict[str, Any]]:
    """Turn an event into the arguments of a logger of the standard library."""
    arguments = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    fields = {"event": str(event.pop("event", "")), **event}
    text = " ".join([fields["event"], *(f"{name}={value!r}" for name, value in event.items())])
    return (text,), {**arguments, "extra": {"omni": fields}}


def _from_record(logger: Any, method: str, event: Any) -> Any:
    """Take the fields from a record that `_to_record` made; another has its text alone."""
    event.update(getattr(event["_record"], "omni", {}))
    return event
