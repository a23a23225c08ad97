"""A worker extension, to see that methods can be added and called by name."""

from __future__ import annotations

from typing import Any

from omni_core.testing import calls


class ConformanceExtension:
    """Methods for the worker; `worker_extension_cls="omni_core.testing.worker_extension:ConformanceExtension"`."""

    def conformance_echo(self, *values: Any, **named: Any) -> Any:
        """Return what was given."""
        return calls.echo(self, *values, **named)

    def conformance_raise(self, text: str) -> None:
        """Raise an exception."""
        calls.raise_error(self, text)

    def conformance_wait(self, file: str, value: Any) -> Any:
        """Return `value` once `file` exists."""
        return calls.wait_then_return(self, file, value)

    def conformance_exit(self, spared_pid: int) -> None:
        """End the worker's process without a word."""
        calls.end(self, spared_pid)

    def conformance_array(self, size: int, fill: int) -> Any:
        """Return an array of `size` bytes."""
        return calls.make_array(self, size, fill)


class ClashingExtension:
    """An extension that must be refused: it has a name that the worker has."""

    def sleep(self) -> None:
        """Do nothing."""
