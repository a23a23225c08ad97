"""Calls of users to the workers. Some of them are handled by the engine."""

from __future__ import annotations

from concurrent.futures import Future
from types import MappingProxyType
from typing import Any

from omni_core.calls import WorkerCall
from omni_core.engine.checked_executor import CheckedExecutor
from omni_core.engine.core import EngineCore
from omni_core.errors import ContractError, RPCError, RPCTimeoutError, WorkerDiedError
from omni_core.outputs import StackingStats

# Methods of the worker that `collective_rpc` refuses, because the engine must know of them, and what to write instead.
# `sleep` and `wake_up` are passed to the engine's own methods, unless the call is non-blocking.
OWN_CALLS = MappingProxyType(
    {
        "call": "Write collective_rpc with the name of the method itself.",
        "close": "Write engine.close(), which ends the workers too.",
        "execute_step": "Write engine.submit(request): the engine decides what its workers advance.",
        "sleep": "Write engine.sleep(level=…), so that requests wait meanwhile.",
        "wake_up": "Write engine.wake_up(), so that requests that waited are served.",
    }
)


def ask_stacking(executor: CheckedExecutor, seconds: float | None) -> StackingStats | None:
    """Return what stacking did in all workers; None if a replica is being replaced, or they do not reply in time.

    Args:
        executor: The executor.
        seconds: Seconds to wait for the workers; None waits until they have replied.

    Raises:
        ContractError: Their replies are no statistics.
    """
    if executor.runs_whole_requests or not all(map(executor.is_ready, range(executor.num_replicas))):
        return None
    try:
        replies: list[StackingStats] = executor.collective_rpc("stats", seconds, (), None, None)
    except (WorkerDiedError, RPCTimeoutError):  # a worker has just died, or is blocked
        return None
    if not all(isinstance(reply, StackingStats) for reply in replies):
        kinds = ", ".join(type(reply).__name__ for reply in replies)
        raise ContractError(
            f"The executor {executor.name} sets runs_diffusion_worker, and stats() of its workers gave {kinds} where "
            "StackingStats are expected."
        )
    return sum(replies, StackingStats())


def make_call(core: EngineCore, call: WorkerCall, seconds: float | None, rank: int | None) -> Any:
    """Make a call on every worker and return the results, or one of them.

    Args:
        core: The core of the engine.
        call: The call.
        seconds: Seconds to wait; None waits until all replies are there.
        rank: The rank whose result is returned; None returns those of all.

    Raises:
        RPCError: The call raised in a worker, the worker has no such method, or it is one of `OWN_CALLS`.
        RPCTimeoutError: A reply did not come in time.
    """
    if call.method in ("sleep", "wake_up"):  # the engine must know, so that requests wait
        return _change_sleep(core, call, seconds, rank)
    _refuse_own(call)
    return core.executor.collective_rpc(call.method, seconds, call.args, call.kwargs, rank)


def begin_call(core: EngineCore, call: WorkerCall, rank: int | None) -> Future[Any]:
    """Begin a call on every worker, and return a future of what `make_call` returns."""
    _refuse_own(call)
    return core.executor.begin_rpc(call.method, call.args, call.kwargs, rank)


def _refuse_own(call: WorkerCall) -> None:
    if isinstance(call.method, str) and call.method in OWN_CALLS:
        raise RPCError(f"The worker's {call.method!r} is not called by collective_rpc. {OWN_CALLS[call.method]}")


def _change_sleep(core: EngineCore, call: WorkerCall, seconds: float | None, rank: int | None) -> Any:
    number = core.executor.num_workers
    if rank is not None and rank not in range(number):
        raise RPCError(f"There is no rank {rank}: there are {number} workers, 0 to {number - 1}.")
    read = _level_of_sleep if call.method == "sleep" else _no_arguments
    try:
        level = read(*call.args, **(call.kwargs or {}))
    except TypeError as error:
        raise RPCError(f"The call {call.name!r} raised TypeError: {error}") from error
    if call.method == "sleep":
        core.sleep(level, seconds)
    else:
        core.wake_up(seconds)
    return [None] * number if rank is None else None


def _level_of_sleep(level: int = 1) -> int:
    return level


def _no_arguments() -> int:
    return 0
