"""Stacking is verified, never assumed: the first stacked call of each kind is held against running its parts alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from omni_core.log import get_logger
from omni_core.outputs import StackingStats
from omni_core.worker.denoiser_call import DenoiserCall, copy_containers
from omni_core.worker.difference import agreed_difference
from omni_core.worker.rank_group import RankGroup, RankGroupError
from omni_core.worker.refusals import note_not_stacked
from omni_core.worker.row_parallel import RowParallel
from omni_core.worker.stacking import NotStackableError, StackingPlan, candidate_plans, split
from omni_core.worker.torch_state import generator_states

log = get_logger(__name__)

StackingMode = Literal["verified", "trusted", "off"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call gave.

    Attributes:
        result: What the denoiser returned to it.
        rows: Rows of the forward pass that gave it.
        error: What it raised instead; never one that was raised by stacking.
    """

    result: Any
    rows: int
    error: Exception | None = None


# Puts in place the state of the task that made the call of that index: grad mode, autocast, random generators.
EnterState = Callable[[int], None]


class VerifiedStacking:
    """Runs groups of calls of one kind as one forward pass where that is right, and one by one where it is not.

    Args:
        mode: `"verified"`, `"trusted"` (stack without checking) or `"off"`.
        rows: What runs calls on several ranks; all then come to the same verdicts. None: this rank is the only one.
    """

    def __init__(self, mode: StackingMode, rows: RowParallel | None = None) -> None:
        self.mode = mode
        self.stats = rows.stats if rows is not None else StackingStats()
        self._run_call = rows.run if rows is not None else _run_call
        self._group = rows.group if rows is not None else RankGroup.alone()
        # What each kind of call came to: a plan that works, or None.
        self._plans: dict[Hashable, StackingPlan | None] = {}
        self._most_rows: dict[Hashable, int] = {}

    def run(self, calls: Sequence[DenoiserCall], enter: EnterState) -> list[Outcome] | None:
        """Run calls of equal `kind` and `values` as one forward pass.

        Args:
            calls: Two calls or more.
            enter: Puts in place the state of the task that made the call of a given index.

        Returns:
            What each call gave, or None if they are to be run alone.
        """
        if self.mode == "off" or len(calls) < 2:
            return None
        # Rows of one count and of several may differ: a model that splits its batch in three gets away with threes.
        kind = (calls[0].kind, frozenset(call.rows for call in calls))
        if kind not in self._plans:
            return self._try(kind, calls, enter)
        plan = self._plans[kind]
        if plan is None:
            return None
        limit = self._most_rows.get(kind)
        if limit is not None and sum(call.rows for call in calls) > limit:
            half = len(calls) // 2
            return self._run_parts(calls, half, enter)
        try:
            return self._forward(plan, calls, enter)
        except RankGroupError:
            raise
        except NotStackableError:
            return None
        except torch.OutOfMemoryError:
            self._most_rows[kind] = max(1, sum(call.rows for call in calls) // 2)
            log.warning(
                "a stacked forward pass ran out of memory; smaller ones from now on", most_rows=self._most_rows[kind]
            )
            return self._run_parts(calls, len(calls) // 2, enter)
        except Exception as error:
            self._refuse(kind, calls[0], f"{type(error).__name__}: {error}")
            return None

    def _run_parts(self, calls: Sequence[DenoiserCall], half: int, enter: EnterState) -> list[Outcome] | None:
        results: list[Outcome] = []
        for start, part in ((0, calls[:half]), (half, calls[half:])):
            found = self.run(part, lambda index, start=start: enter(start + index)) if len(part) > 1 else None  # type: ignore[misc]
            if found is None:
                found = [self._alone(call, start + index, enter) for index, call in enumerate(part)]
            results.extend(found)
        return results

    def _forward(self, plan: StackingPlan, calls: Sequence[DenoiserCall], enter: EnterState) -> list[Outcome]:
        if plan.row_lists:
            calls = [DenoiserCall.describe(call.module, call.args, call.kwargs, row_lists=True) for call in calls]
        enter(0)
        args, kwargs = plan.stack(calls)
        output = self._run_call(calls[0].module, args, kwargs)
        results = split(output, [call.rows for call in calls], row_lists=calls[0].takes_list)
        self.stats.forwards += 1
        total = sum(call.rows for call in calls)
        self.stats.rows += total
        return [Outcome(result, total) for result in results]

    def _alone(self, call: DenoiserCall, index: int, enter: EnterState) -> Outcome:
        self.stats.forwards += 1
        self.stats.rows += call.rows
        # In containers of their own: some models pop what they use off lists, and these arguments are needed again.
        args, kwargs = copy_containers((call.args, call.kwargs))
        enter(index)
        try:
            return Outcome(self._run_call(call.module, args, kwargs), call.rows)
        except RankGroupError:
            raise
        except Exception as error:  # belongs to the one request that made the call
            return Outcome(None, call.rows, error)

    def _try(self, kind: Hashable, calls: Sequence[DenoiserCall], enter: EnterState) -> list[Outcome] | None:
        """Find the plan that is right for a kind, and return the results of running each call alone."""
        if self.mode == "trusted":
            return self._try_trusted(kind, calls, enter)
        results: list[Outcome] = []
        drew = False
        for index, call in enumerate(calls):
            enter(index)
            before = generator_states(call.leaves)
            results.append(self._alone(call, index, enter))
            drew = drew or not torch.equal(before, generator_states(call.leaves))
        if any(outcome.error is not None for outcome in results):
            return results  # not a verdict on the kind
        if drew:
            self._refuse(kind, calls[0], "it draws random numbers, which must come from each request's own generator")
            return results
        reason = "its arguments do not fit together"
        for plan, described in candidate_plans(calls):
            try:
                stacked = self._forward(plan, described, enter)
            except RankGroupError:
                raise
            except torch.OutOfMemoryError:
                return results  # not a verdict on the kind: try again when there is more room
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            pairs = zip(stacked, results, strict=True)
            gap = agreed_difference(self._group, ((one.result, alone.result) for one, alone in pairs))
            if gap is None:
                return results
            if gap <= 1.0:
                self._plans[kind] = plan
                self.stats.verified += 1
                return results
            reason = f"the result differs by {gap:.3g} times the tolerance from running it alone"
        self._refuse(kind, calls[0], reason)
        return results

    def _try_trusted(self, kind: Hashable, calls: Sequence[DenoiserCall], enter: EnterState) -> list[Outcome] | None:
        reason = "its arguments do not fit together"
        for plan, described in candidate_plans(calls):
            try:
                results = self._forward(plan, described, enter)
            except RankGroupError:
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            self._plans[kind] = plan
            return results
        self._refuse(kind, calls[0], reason)
        return None

    def _refuse(self, kind: Hashable, call: DenoiserCall, reason: str) -> None:
        self._plans[kind] = None
        self.note_refusal(call, reason)

    def note_refusal(self, call: DenoiserCall, reason: str) -> None:
        """Put on record, once, that calls like this one are run alone."""
        note_not_stacked(self.stats, call, reason)


def _run_call(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return module(*args, **kwargs)
