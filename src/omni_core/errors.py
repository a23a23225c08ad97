"""The error tree. Every exception that omni raises on purpose derives from `OmniError`.

All of them survive pickling: the message is the only positional argument and further facts are keyword attributes,
so an error raised in a worker process arrives in the driver as it was.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OmniError(Exception):
    """Base of every error that omni raises.

    Args:
        message: What happened, to which request or worker, why, and what to do about it.
        worker_traceback: The formatted traceback of the worker in which it happened, if it happened in one.
    """

    def __init__(self, message: str, *, worker_traceback: str | None = None) -> None:
        super().__init__(message)
        self.worker_traceback = worker_traceback

    @property
    def message(self) -> str:
        """The message without the worker's traceback."""
        return str(self.args[0])

    def __str__(self) -> str:
        if self.worker_traceback is None:
            return self.message
        return f"{self.message}\n\nTraceback in the worker:\n{self.worker_traceback}"


class ValidationError(OmniError, ValueError):
    """A configuration or a request holds a value that cannot be meant."""


class ConfigError(ValidationError):
    """The configuration is wrong, or asks for what the chosen executor or pipeline cannot do."""


class RequestError(ValidationError):
    """A request is malformed, or does not fit the pipeline that is loaded."""


class PluginError(OmniError):
    """A plugin could not be used; the message names its distribution."""


class ExecutorNotFoundError(PluginError):
    """No executor answers to the given `executor_class`."""


class PluginConflictError(PluginError):
    """Two distributions register the same executor name and the configuration does not say which one is meant."""


class PluginVersionError(PluginError):
    """A plugin was built for another version of the executor contract."""


class ModelLoadError(OmniError):
    """The pipeline could not be built from what `model` names."""


class PipelineError(OmniError):
    """The pipeline raised while it served one request. That request fails alone."""


class ExecutorError(OmniError):
    """The executor failed to do its work."""


class WorkerDiedError(ExecutorError):
    """A worker ended, or stopped answering, while it had work. Its requests are run again; see `max_retries`.

    Args:
        message: Which worker, how it ended, and what was done about it.
        replica: Index of its replica.
        rank: Its rank within the replica; None if not known.
        worker_traceback: What it last said, if anything.
    """

    def __init__(
        self, message: str, *, replica: int = 0, rank: int | None = None, worker_traceback: str | None = None
    ) -> None:
        super().__init__(message, worker_traceback=worker_traceback)
        self.replica = replica
        self.rank = rank


class RankGroupError(ExecutorError):
    """The ranks of a replica cannot go on together: one is gone, does not answer, or has lost step with the others."""


class RPCError(ExecutorError):
    """A call sent to the workers with `collective_rpc` raised there, or could not be sent."""


class RPCTimeoutError(RPCError, TimeoutError):
    """A call sent with `collective_rpc` got no reply in time. A reply that comes later is dropped."""


class ContractError(ExecutorError):
    """An executor answered what its contract does not allow; the message names the method. Its author must mend it."""


class StartupError(ExecutorError):
    """The executor or one of its workers could not be started."""


class EngineError(OmniError):
    """The engine cannot do what was asked of it in its present state."""


class EngineClosedError(EngineError):
    """The engine was closed before, or while, it was asked."""


class EngineDeadError(EngineError):
    """The engine stopped because of a fault of its own; the message and the cause say which."""


class EngineOverloadedError(EngineError):
    """More requests wait than `max_waiting` allows; try again later."""


class RequestAbortedError(OmniError):
    """A request ended because somebody aborted it."""


class RequestTimeoutError(OmniError, TimeoutError):
    """A request ended because its own `timeout_s` had passed."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `name` is most likely a misspelling of, or None if none is near."""
    by_plain = {candidate.lower().replace("-", "_"): candidate for candidate in known}
    plain = name.lower().replace("-", "_")
    found = difflib.get_close_matches(plain, by_plain, n=1, cutoff=0.6)
    if not found and len(plain) > 2:  # "steps" is near to no spelling, but part of "num_inference_steps"
        found = [candidate for candidate in by_plain if plain in candidate][:1]
    return by_plain[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"`, or the empty string if nothing in `known` is near to `name`."""
    found = closest(name, known)
    return f" Did you mean {found!r}?" if found else ""
