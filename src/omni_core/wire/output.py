"""Forwards the standard output and error of worker processes to the log, and keeps the last lines for messages."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re

from omni_core.log import get_logger
from omni_core.wire.reactor import Reactor

log = get_logger(__name__)

_LINES_KEPT = 30
_LONGEST_LINE = 65536


class WorkerOutput:
    """A pipe whose lines go to omni's log, tagged with replica and rank.

    Log lines of the worker (JSON objects with an event and a level) keep their level and fields. Other lines are logged
    as they are. Progress bars are dropped.

    Args:
        reactor: The reactor that reads the pipe.
        tags: Log fields that identify the process.
    """

    def __init__(self, reactor: Reactor, tags: dict[str, object]) -> None:
        self._reactor = reactor
        self._tags = tags
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._rest = b""
        self._is_open = True
        self._last: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        reactor.watch(self._read_fd, self._read)

    def close_write_end(self) -> None:
        """Close this process's copy of the end that the worker writes to."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def tail(self) -> str:
        """Return the last lines of the output."""
        self._read()
        return "\n".join(self._last)

    def close(self) -> None:
        """Read the rest, and close the pipe."""
        self.close_write_end()
        self._read()
        if self._is_open:
            self._end()

    def _end(self) -> None:
        self._is_open = False
        self._reactor.unwatch(self._read_fd)
        os.close(self._read_fd)
        if self._rest:
            self._pass_on(self._rest)
            self._rest = b""

    def _read(self) -> None:
        while self._is_open:
            try:
                data = os.read(self._read_fd, _LONGEST_LINE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._end()
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._pass_on(line)
            # Text before a carriage return was overwritten. A last one may be part of a line end.
            self._rest = self._rest[max(0, self._rest.rfind(b"\r", 0, -1)) :]
            if len(self._rest) > _LONGEST_LINE:
                self._pass_on(self._rest)
                self._rest = b""

    def _pass_on(self, line: bytes) -> None:
        text = _shown(line.decode(errors="replace").rstrip())
        if not text:
            return
        level, event, fields = _parse(text)
        self._last.append(event if fields is None else text)
        try:
            log.log(level, event, **{**(fields or {}), **self._tags})
        except Exception:  # the fields are not those of our log
            log.info(text, **self._tags)


# What tqdm draws: `name:  40%|####      | 4/10 [00:01<00:02,  3.1it/s]`, or `name: 4it [00:01,  3.1it/s]` where it
# knows no total. Blanks may follow, which cover the rest of a longer bar.
_BAR = re.compile(r"^[^|]*?(\d+%\|[^|]*\|[^\[]*|[\d.]+\S* )\[\d+:\d[^\]]*\] *")
# Moves the cursor from a second bar back to the first one.
_LINE_UP = "\x1b[A"


def _shown(line: str) -> str:
    """Return the text that a terminal finally shows for a line, without a progress bar."""
    if "\r" not in line:
        return line
    last = _BAR.sub("", line.rpartition("\r")[2].replace(_LINE_UP, ""))
    return last if last.strip() else ""


# Names with a meaning in our log, which fields of a worker must not use.
_TAKEN = ("self", "event", "level", "exc_info", "stack_info", "stacklevel", "extra")
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


def _parse(text: str) -> tuple[int, str, dict[str, object] | None]:
    """Return level, event and fields of a line of omni's log; for another line, the line as event."""
    if text.startswith("{"):
        # A library may write any text that begins like our log: then it is an ordinary line.
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            fields = json.loads(text)
            level = _LEVELS.get(fields.pop("level", None))
            event = fields.pop("event", None)
            if level is not None and isinstance(event, str):
                for name in ("timestamp", "replica", "rank"):
                    fields.pop(name, None)
                fields["worker_logger"] = fields.pop("logger", None)
                return level, event, {f"worker_{name}" if name in _TAKEN else name: fields[name] for name in fields}
    return 20, text, None
