"""Handles a rank that raised: its replica is replaced, since the other ranks may wait for it in a collective."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from omni_core.errors import OmniError, WorkerDiedError
from omni_core.outputs import StepOutput
from omni_core.replicas.loop import Loop
from omni_core.replicas.worker import Worker

# Seconds to wait for the death of another rank after a rank has raised: it may have raised because it lost that peer.
_CAUSE_WAIT_S = 0.4


class RaisedRanks:
    """Fails the step of a rank that raised, and has its replica replaced.

    Args:
        loop: The loop in whose thread the workers are watched.
        replica: Index of the replica.
        on_change: Called when the replica may be ready again.
        grace_s: Seconds that the other ranks have to reply.
        workers: Returns the current workers of the replica.

    Attributes:
        is_condemned: Whether a rank has raised in a step and the replica was not replaced yet.
    """

    def __init__(
        self,
        loop: Loop,
        replica: int,
        on_change: Callable[[], None],
        grace_s: float,
        workers: Callable[[], list[Worker]],
    ) -> None:
        self.is_condemned = False
        self._loop = loop
        self._replica = replica
        self._on_change = on_change
        self._grace_s = grace_s
        self._workers = workers
        # Failed steps that wait for the death that may be their cause.
        self._unsettled: list[Callable[[], None]] = []

    def fail_step(
        self, outcome: Future[StepOutput], futures: list[Future[Any]], rank: int, error: BaseException
    ) -> None:
        """Fail a step. If a rank raised because another died, the step fails with that death.

        Args:
            outcome: The future of the step.
            futures: The futures of the ranks.
            rank: The rank that failed.
            error: Its error.
        """
        if len(futures) == 1 or isinstance(error, WorkerDiedError):
            outcome.set_exception(self._step_error(rank, error))
            return

        def settle() -> None:
            ended = [future.exception() for future in futures if future.done()]
            cause = next((one for one in ended if isinstance(one, WorkerDiedError)), None)
            if cause is not None:
                self.is_condemned = False
                self._on_change()
            outcome.set_exception(cause or self._step_error(rank, error))

        def wait() -> None:
            self._unsettled.append(settle)
            self._loop.call_later(_CAUSE_WAIT_S, lambda: self._settle(settle))

        self.is_condemned = True
        self._loop.call_soon(wait)

    def settle_all(self) -> None:
        """Fail the waiting steps now."""
        for settle in list(self._unsettled):
            self._settle(settle)

    def release_others(self, done: Future[Any], workers: list[Worker], futures: list[Future[Any]]) -> None:
        """If a rank has raised, kill the replica unless the other ranks reply within `grace_s`.

        Args:
            done: The future of the rank that is done.
            workers: All ranks.
            futures: The futures of all ranks.
        """
        if done.cancelled() or done.exception() is None or isinstance(done.exception(), WorkerDiedError):
            return
        grace_s = self._grace_s

        def look() -> None:
            for worker, future in zip(workers, futures, strict=True):
                if not future.done() and worker.is_alive:
                    worker.declare_dead(
                        f"waited {grace_s:g} s (collective_grace_s) for another rank, which had raised, and was killed"
                    )
                    return

        def wait() -> None:
            self._loop.call_later(grace_s, look)

        self._loop.call_soon(wait)

    def _settle(self, settle: Callable[[], None]) -> None:
        if settle in self._unsettled:
            self._unsettled.remove(settle)
            settle()

    def _step_error(self, rank: int, error: BaseException) -> BaseException:
        """Return the error of a step. If a rank raised, the state of the replica is unknown, and it is replaced."""
        if isinstance(error, WorkerDiedError):
            return error
        workers = self._workers()
        if rank < len(workers):
            self.is_condemned = True
            worker = workers[rank]

            def replace() -> None:
                worker.declare_dead(f"raised in a step and was replaced: {error}")
                self.is_condemned = False

            self._loop.call_soon(replace)
        message = error.message if isinstance(error, OmniError) else str(error)
        return WorkerDiedError(
            f"Rank {rank} of replica {self._replica} raised in a step, and the replica is replaced: {message}",
            replica=self._replica,
            rank=rank,
            worker_traceback=getattr(error, "worker_traceback", None),
        )
