"""Runs one denoiser call on all ranks of a replica, each with a part of its rows.

With classifier-free guidance in one batch this is CFG parallelism, for every stock pipeline. A call of `[rows, ...]`
becomes a call of `[rows / ranks, ...]` on each rank. As with stacking, nothing is assumed about the model: the first
call of each kind is also run whole on every rank, and if the results differ, that kind runs whole from then on.

A part may itself be computed by several ranks, with sequence or tensor parallelism inside the model.

All ranks take the same branches in this module. What only one rank can know (an error, memory that ran out, a
difference) is first agreed on by all ranks, and no rank enters a collective before all are known to enter it.
"""

from __future__ import annotations

import contextlib
import pickle
import traceback
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from omni_core.error_text import described_error, is_ctrl_c
from omni_core.errors import RankGroupError
from omni_core.outputs import StackingStats
from omni_core.worker.parallel.batch_split import (
    BatchSplit,
    NotSplitError,
    OutputPart,
    candidate_splits,
    gather_entries,
    row_counts,
)
from omni_core.worker.parallel.forward_peers import ForwardPeers
from omni_core.worker.parallel.rank_group import RankGroup
from omni_core.worker.stacking.call import DenoiserCall, copy_containers, generator_states
from omni_core.worker.stacking.difference import IncomparableError, agreed_difference
from omni_core.worker.stacking.refusals import note_not_split
from omni_core.worker.stacking.row_limit import is_out_of_memory
from omni_core.worker.stacking.runner import CallRunner, Result

_OK, _RAISED, _OUT_OF_MEMORY = 0, 1, 2


class PeerTraceback(Exception):
    """The cause of an error that another rank raised. Its message is the traceback on that rank."""


class BatchParallel(CallRunner):
    """Runs denoiser calls with their rows split over the ranks, and returns the whole result on every rank.

    Args:
        group: All ranks of the replica, which make the same calls and decide the same.
        stats: Records refused kinds.
        rows: The ranks over which rows are split. None: all.
        peers: The ranks that compute each forward pass together with this one. None: it computes alone.
    """

    def __init__(
        self, group: RankGroup, stats: StackingStats, rows: RankGroup | None = None, peers: ForwardPeers | None = None
    ) -> None:
        super().__init__(stats)
        self.group = group
        self._rows = group if rows is None else rows
        self._peers = peers
        # By kind and number of rows: the verified split, or None if the kind is refused.
        self._splits: dict[Hashable, BatchSplit | None] = {}

    def run(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call, split by rows if that is verified. All ranks must make the same call.

        Returns:
            The result of `module(*args, **kwargs)`, with all rows, on every rank.

        Raises:
            BaseException: The module raised it, on any rank. Then all ranks raise.
            RankGroupError: A rank is gone, or the ranks are out of step.
        """
        call = DenoiserCall.unexamined(module, args, kwargs)
        records_gradients = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if call.rows < self._rows.world_size or self._rows.world_size == 1 or records_gradients:
            return self._run_whole(call)
        call.examine()
        if call.rows == 0:
            return self._run_whole(call)
        key = (call.kind, call.rows)
        if key not in self._splits:
            return self._verify(key, call)
        split = self._splits[key]
        if split is None:
            return self._run_whole(call)
        try:
            return self._run_split(split, call)
        except RankGroupError:
            raise
        except BaseException as error:
            if is_out_of_memory(error) or is_ctrl_c(error):
                raise
            reason = described_error(error)
        # If this raises, the call itself fails, and nothing is known about splitting.
        result = self._run_whole(call)
        self._refuse(key, call, reason)
        return result

    def run_whole(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> Any:
        """Run one call whole on every rank, and record `reason`. Returns and raises as `run` does."""
        call = DenoiserCall.unexamined(module, args, kwargs)
        note_not_split(self.stats, call, reason)
        return self._run_whole(call)

    @property
    def is_alone(self) -> bool:
        """Whether there are no other ranks."""
        return self.group.world_size == 1

    def agree_all(self, purpose: str, values: Sequence[float]) -> list[float]:
        """Return the maximum of each value over all ranks.

        Raises:
            RankGroupError: A rank is gone, or the ranks are out of step.
        """
        return self.group.agree_all(purpose, values)

    def agree_on(self, what: str, make: Callable[[], Result]) -> Result:
        """Return `make()`, which enters no collective and may fail on one rank only. Then all ranks raise.

        Args:
            what: Name of the exchange, the same on all ranks.
            make: The function.

        Raises:
            BaseException: `make` raised it, on any rank.
            RankGroupError: A rank is gone, or the ranks are out of step.
        """
        result, _ = self._agree(what, lambda: (make(), ()))
        return result

    def _run_whole(self, call: DenoiserCall) -> Any:
        result, _ = self._attempt("run whole", call, lambda: (call.module(*call.args, **call.kwargs), ()))
        return result

    def _run_split(self, split: BatchSplit, call: DenoiserCall) -> Any:
        group = self._rows
        if split.row_lists:
            call = DenoiserCall.describe(call.module, call.args, call.kwargs, row_lists=True)
        counts = row_counts(call.rows, group.world_size)
        start = sum(counts[: group.rank])
        mine = counts[group.rank]

        def run() -> tuple[tuple[OutputPart, list[torch.Tensor], list[torch.Tensor]], Sequence[float]]:
            args, kwargs = split.part(call, start, start + mine)
            part = OutputPart.of(call.module(*args, **kwargs), mine, call.takes_list)
            matrices = part.matrices()
            buffers = [group.rows_buffer(matrix, counts) for matrix in matrices]
            return (part, matrices, buffers), (part.signature, -part.signature)

        (part, matrices, buffers), (highest, lowest) = self._attempt("run split", call, run)
        if highest != -lowest:
            raise NotSplitError("the parts of the output do not fit together")
        gathered = [
            group.all_gather_rows(matrix, counts, buffer) for matrix, buffer in zip(matrices, buffers, strict=True)
        ]
        lists = [gather_entries(entries, group.all_gather_objects, group.all_gather_rows) for entries in part.lists]
        return part.whole(gathered, lists)

    def _verify(self, key: Hashable, call: DenoiserCall) -> Any:
        """Find and verify a split for a kind, and return the result of running the call whole."""
        tensors = [leaf for leaf in call.leaves if isinstance(leaf, torch.Tensor)]

        def run() -> tuple[Any, Sequence[float]]:
            before = [tensor.clone() for tensor in tensors]
            generators = generator_states(call.leaves)
            # In new containers: some models pop entries off lists.
            args, kwargs = copy_containers((call.args, call.kwargs))
            result = call.module(*args, **kwargs)
            drew = not torch.equal(generators, generator_states(call.leaves))
            changed = not all(_same(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))
            return result, (drew, changed)

        whole, (drew, changed) = self._attempt("run whole, to verify", call, run)
        reason = "its arguments do not tell what its rows are"
        if drew:
            reason = "it draws random numbers"
        elif changed:
            reason = "it changes its arguments"
        else:
            for split, described_call in candidate_splits(call):
                try:
                    result = self._run_split(split, described_call)
                    gap = agreed_difference(self.agree_all, [(result, whole)])
                except RankGroupError:
                    raise
                except IncomparableError as error:
                    reason = str(error)
                    continue
                except BaseException as error:
                    if is_ctrl_c(error):
                        raise
                    if is_out_of_memory(error):
                        return whole  # no verdict on the kind
                    reason = described_error(error)
                    continue
                if gap is None:
                    return whole
                if gap <= 1.0:
                    self._splits[key] = split
                    return whole
                reason = f"the result differs by {gap:.3g} times the tolerance from running it whole"
        self._refuse(key, call, reason)
        return whole

    def _refuse(self, key: Hashable, call: DenoiserCall, reason: str) -> None:
        self._splits[key] = None
        note_not_split(self.stats, call, reason)

    def _attempt(
        self, what: str, call: DenoiserCall, run: Callable[[], tuple[Result, Sequence[float]]]
    ) -> tuple[Result, list[float]]:
        """Run a forward pass, which may fail on one rank only. Returns and raises as `_agree` does.

        Raises:
            RankGroupError: Also if only one of the ranks that compute a forward pass together raised.
        """
        purpose = f"{what}: {type(call.module).__name__}, {call.rows} rows"
        peers = self._peers
        return self._agree(purpose, run if peers is None else lambda: peers.run(run))

    def _agree(self, purpose: str, run: Callable[[], tuple[Result, Sequence[float]]]) -> tuple[Result, list[float]]:
        """Run a function that may fail on one rank only.

        Returns:
            The result of this rank, and the maximum of each number over all ranks.

        Raises:
            BaseException: `run` raised it, on this or on another rank.
            RankGroupError: A rank is gone.
        """
        failure: BaseException | None = None
        status = _OK
        numbers: Sequence[float] = ()
        try:
            result, numbers = run()
        except RankGroupError:
            raise
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            failure, status = error, _OUT_OF_MEMORY if is_out_of_memory(error) else _RAISED
        try:
            worst, *agreed = self.group.agree_all(purpose, [status, *numbers, *[0.0] * (2 - len(numbers))])
            if self._peers is not None:
                self._peers.forget_failure()
            if worst != _OK:
                raise self._common_error(failure if status == worst else None)
            return result, agreed
        finally:
            del failure  # its frames hold this frame, and all tensors of the forward pass

    def _common_error(self, mine: BaseException | None) -> BaseException:
        """Return the error that this rank raises: its own one, or that of the first rank that failed."""
        sent = None if mine is None else _SentError.of(mine)
        found: list[_SentError | None] = self.group.all_gather_objects(sent)
        if mine is not None:
            return mine
        rank, first = next((rank, error) for rank, error in enumerate(found) if error is not None)
        return first.error(rank)


class _SentError:
    """An error in the form in which it is sent to the other ranks."""

    def __init__(self, pickled: bytes, text: str, traceback_text: str, is_out_of_memory: bool) -> None:
        self.pickled = pickled
        self.text = text
        self.traceback_text = traceback_text
        self.is_out_of_memory = is_out_of_memory

    @classmethod
    def of(cls, error: BaseException) -> _SentError:
        try:
            pickled = pickle.dumps(error)
        except Exception:
            pickled = b""
        text = "".join(traceback.format_exception(error))
        return cls(pickled, described_error(error), text, is_out_of_memory(error))

    def error(self, rank: int) -> BaseException:
        error: BaseException = torch.OutOfMemoryError(self.text) if self.is_out_of_memory else RuntimeError(self.text)
        with contextlib.suppress(Exception):
            found = pickle.loads(self.pickled)  # noqa: S301  # from a rank of our own
            # All ranks must handle it in the same way.
            if isinstance(found, BaseException) and is_out_of_memory(found) == self.is_out_of_memory:
                error = found
        error.__cause__ = PeerTraceback(f"on rank {rank} of the replica:\n{self.traceback_text}")
        return error


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
