"""Keeps the ranks of a replica in step: after each wave they agree on the state of each request."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from omni_core.errors import OmniError, PipelineError, RankGroupError
from omni_core.worker.parallel.rank_group import RankGroup
from omni_core.worker.task.interrupt import Interrupt
from omni_core.worker.task.task import PipelineTask

_FAILED = "failed"


class Lockstep:
    """Makes sure that each request waits, has ended or has failed on all ranks.

    Args:
        group: The ranks; more than one.
        interrupt: The interrupt of this rank. Only that of rank 0 has an effect, on all ranks.

    Attributes:
        is_interrupted: Whether an early return was requested. It stays True until it is set to False.
    """

    def __init__(self, group: RankGroup, interrupt: Interrupt) -> None:
        self.group = group
        self.is_interrupted = False
        self._interrupt = interrupt

    def settle(self, tasks: Sequence[PipelineTask]) -> None:
        """Agree on the states of tasks. A task that failed on any rank fails on all.

        Args:
            tasks: The tasks that have run, the same on all ranks and in the same order.

        Raises:
            RankGroupError: A rank is gone, or a task has different states on different ranks.
        """
        states = [_state(task) for task in tasks]
        number = zlib.crc32(
            repr([(task.request.request_id, state) for task, state in zip(tasks, states, strict=True)]).encode()
        )
        wants_out = self.group.rank == 0 and self._interrupt.take()
        highest, lowest, any_wants_out = self.group.agree_all("settle a wave", [number, -number, wants_out])
        self.is_interrupted = self.is_interrupted or bool(any_wants_out)
        if highest == -lowest:
            return
        reports = [(state, _error(task)) for task, state in zip(tasks, states, strict=True)]
        by_rank: list[list[tuple[str, tuple[str, str | None] | None]]] = self.group.all_gather_objects(reports)
        for task, places in zip(tasks, zip(*by_rank, strict=True), strict=True):
            failed = next(((rank, error) for rank, (_, error) in enumerate(places) if error is not None), None)
            if failed is not None:
                rank, (message, text) = failed
                if task.output is None or task.output.error is None:
                    task.fail(PipelineError(f"{message} (On rank {rank} of the replica.)", worker_traceback=text))
            elif len({state for state, _ in places}) > 1:
                where = "; ".join(f"on rank {rank} it {state}" for rank, (state, _) in enumerate(places))
                raise RankGroupError(
                    f"Request {task.request.request_id!r} is at different places on the ranks of this replica: {where}."
                )


def _state(task: PipelineTask) -> str:
    if task.output is not None:
        return _FAILED if task.output.finish_reason == "error" else f"has ended ({task.output.finish_reason})"
    if task.call is None:
        return "runs"
    return f"waits for a call of {type(task.call.module).__name__} with {task.call.rows} rows"


def _error(task: PipelineTask) -> tuple[str, str | None] | None:
    error: OmniError | None = task.output.error if task.output is not None else None
    if error is None or task.output is None or task.output.finish_reason != "error":
        return None
    return error.message, error.worker_traceback
