"""What the exit code of `omni` tells a script."""

from __future__ import annotations

from omni_core.errors import EngineClosedError, EngineDeadError, OmniError, ValidationError

OK = 0
FAILED = 1  # a request failed, or `omni doctor` found a problem
USAGE = 2  # the command line, the configuration or a request is wrong
ENGINE = 3  # the engine could not start, or died
INTERRUPTED = 130  # Ctrl-C


def exit_code_of(error: OmniError) -> int:
    """Return the exit code for an error that ended the command."""
    return USAGE if isinstance(error, ValidationError) else ENGINE


def exit_code_of_signal(number: int) -> int:
    """Return the exit code for a signal that ended the command, as shells have it: 128 and its number."""
    return 128 + number


def means_engine_died(error: OmniError | None) -> bool:
    """Return whether a request failed because the engine is gone."""
    return isinstance(error, (EngineClosedError, EngineDeadError))
