"""Verifies stacking: the first stacked call of each kind is compared with running its parts alone.

Later calls with other values are verified again: see `trust.py`.

An error of a stacked forward pass may be caused by one request. So its parts are then run alone, and the kind is
refused only if all of them succeed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from omni_core.error_text import described_error, is_ctrl_c
from omni_core.errors import RankGroupError
from omni_core.log import get_logger
from omni_core.outputs import StackingStats
from omni_core.worker.pipeline.module_edits import parts_of
from omni_core.worker.stacking.call import (
    DenoiserCall,
    clone_tensors,
    copy_containers,
    generator_states,
    tensor_versions,
)
from omni_core.worker.stacking.difference import IncomparableError, agreed_difference
from omni_core.worker.stacking.plan import StackingPlan, UnequalTablesError, candidate_plans, split
from omni_core.worker.stacking.refusals import note_mismatch, note_not_stacked
from omni_core.worker.stacking.row_limit import RowLimit, is_out_of_memory
from omni_core.worker.stacking.runner import CallRunner
from omni_core.worker.stacking.shared_model import ModelState, left_by_each
from omni_core.worker.stacking.trust import DOUBTS, Doubt, Trust

log = get_logger(__name__)

StackingMode = Literal["verified", "trusted", "off"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one call.

    Attributes:
        result: What the denoiser returned for it: tensors `[n * rows of the call, ...]`.
        rows: Number of rows of the forward pass.
        error: The exception that the call raised; never one that stacking caused.
    """

    result: Any
    rows: int
    error: BaseException | None = None


# Installs the state of the task that made the call of that index: gradient mode, autocast, random generators.
EnterState = Callable[[int], None]


@dataclass(slots=True)
class _Kind:
    """The record of one kind of call.

    Attributes:
        plan: The verified plan; None if there is none yet.
        is_refused: Whether its calls run alone from now on.
        has_tables: Whether verification failed because tensors without rows differed between the calls.
        limit: The number of rows that fit into memory.
        trust: What the plan was verified with.
    """

    plan: StackingPlan | None = None
    is_refused: bool = False
    has_tables: bool = False
    limit: RowLimit = field(default_factory=RowLimit)
    trust: Trust = field(default_factory=Trust)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a stacked forward pass failed. It does not hold the error, whose frames would keep tensors in memory."""

    reason: str
    is_wrong: bool = False
    is_out_of_memory: bool = False
    tables_differ: bool = False


class VerifiedStacking:
    """Runs groups of calls of one kind as one forward pass if that is verified, and otherwise one by one.

    Args:
        mode: `"verified"`, `"trusted"` (stack without checking) or `"off"`.
        runner: What runs calls; where there are several ranks, all come to the same verdicts. None: this rank alone.
    """

    def __init__(self, mode: StackingMode, runner: CallRunner | None = None) -> None:
        self.mode = mode
        self._runner = CallRunner(StackingStats()) if runner is None else runner
        self.stats = self._runner.stats
        self._kinds: dict[Hashable, _Kind] = {}
        # Called when a kind that has served calls fails a check, with the number of the kind and the reason.
        self.on_mismatch: Callable[[int, str], None] = lambda kind, reason: None
        # Called when calls were served stacked, with the number of the kind and the calls; once per half if halved.
        self.on_stacked: Callable[[int, Sequence[DenoiserCall]], None] = lambda kind, calls: None
        # Called with the reason when a model is found to keep state between calls.
        self.on_stateful: Callable[[str], None] = lambda reason: None

    def run(self, calls: Sequence[DenoiserCall], enter: EnterState) -> list[Outcome] | None:
        """Run calls of equal `kind` and `values` as one forward pass.

        Args:
            calls: Two calls or more.
            enter: Installs the state of the task that made the call of a given index.

        Returns:
            The outcome of each call; None if they must run alone.
        """
        if self.mode == "off" or len(calls) < 2:
            return None
        try:
            return self._run_within_limit(calls, enter, set())
        except RankGroupError:
            raise
        except Exception as error:  # caused by the arguments of these calls: other requests of the engine must not fail
            if not self._runner.is_alone:
                raise
            kind = self._kind(calls)
            if is_out_of_memory(error):
                kind.limit.note_out_of_memory(_rows(calls), is_known=kind.plan is not None)
            else:
                self._refuse(kind, calls[0], f"it cannot be looked at: {described_error(error)}")
            return self._run_alone(calls, enter)

    def _kind(self, calls: Sequence[DenoiserCall]) -> _Kind:
        # By the row counts too: a model that splits its batch in three may be right only for multiples of three.
        return self._kinds.setdefault((calls[0].kind, frozenset(call.rows for call in calls)), _Kind())

    def _run_within_limit(
        self, calls: Sequence[DenoiserCall], enter: EnterState, begun: set[int]
    ) -> list[Outcome] | None:
        """Run calls, in halves if the row limit requires it. `begun`: the kinds whose turn was counted already."""
        kind = self._kind(calls)
        if id(kind) not in begun:
            begun.add(id(kind))
            kind.limit.begin_turn(_rows(calls))
        if kind.is_refused:
            return None
        if not kind.limit.allows(_rows(calls)):
            return self._run_halves(calls, enter, begun)
        if kind.plan is None:
            return self._try(kind, calls, enter)
        doubt = self._doubt(kind, calls) if self.mode == "verified" else "none"
        if doubt == "all":
            return self._verify_again(kind, kind.plan, calls, enter)
        found = self._attempt(kind, kind.plan, calls, enter)
        if not isinstance(found, _Failure):
            if doubt == "a sample" and (reason := self._wrong_part(kind, calls, found, enter)) is not None:
                self._note_mismatch(kind, calls[0], reason)
                return self._run_alone(calls, enter)
            self.on_stacked(id(kind), calls)
            return found
        if found.tables_differ:
            return None
        outcomes = self._run_alone(calls, enter)
        self._judge(kind, calls, outcomes, found)
        return outcomes

    def _doubt(self, kind: _Kind, calls: Sequence[DenoiserCall]) -> Doubt:
        """Return how much of a call must be verified: the maximum of what each rank decides from its tensors."""
        own = DOUBTS.index(kind.trust.count(calls))
        [agreed] = self._runner.agree_all("what is in doubt", [float(own)])
        return DOUBTS[int(agreed)]

    def _run_halves(self, calls: Sequence[DenoiserCall], enter: EnterState, begun: set[int]) -> list[Outcome]:
        half = len(calls) // 2
        outcomes: list[Outcome] = []
        for start, part in ((0, calls[:half]), (half, calls[half:])):

            def enter_part(index: int, start: int = start) -> None:
                enter(start + index)

            found = self._run_within_limit(part, enter_part, begun) if len(part) > 1 else None
            outcomes.extend(self._run_alone(part, enter_part) if found is None else found)
        return outcomes

    def _attempt(
        self, kind: _Kind, plan: StackingPlan, calls: Sequence[DenoiserCall], enter: EnterState
    ) -> list[Outcome] | _Failure:
        """Run calls as one forward pass. Either all ranks succeed, or all fail in the same way."""
        try:
            outcomes = self._forward(plan, calls, enter)
        except RankGroupError:
            raise
        except UnequalTablesError as error:
            return _Failure(str(error), tables_differ=True)
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            return _Failure(described_error(error), is_out_of_memory=is_out_of_memory(error))
        kind.limit.note_success(_rows(calls))
        return outcomes

    def _forward(self, plan: StackingPlan, calls: Sequence[DenoiserCall], enter: EnterState) -> list[Outcome]:
        if plan.row_lists:
            calls = [DenoiserCall.describe(call.module, call.args, call.kwargs, row_lists=True) for call in calls]
        enter(0)
        args, kwargs = self._runner.agree_on("stack", lambda: plan.stack(calls))
        output = self._runner.run(calls[0].module, args, kwargs)
        results = split(output, [call.rows for call in calls], row_lists=calls[0].takes_list)
        total = _rows(calls)
        self.stats.forwards += 1
        self.stats.rows += total
        return [Outcome(result, total) for result in results]

    def _run_alone(self, calls: Sequence[DenoiserCall], enter: EnterState) -> list[Outcome]:
        outcomes = []
        for index, call in enumerate(calls):
            enter(index)
            outcomes.append(self._alone(call))
        return outcomes

    def _alone(self, call: DenoiserCall) -> Outcome:
        self.stats.forwards += 1
        self.stats.rows += call.rows
        # In new containers: some models pop entries off lists, and the arguments are needed again.
        args, kwargs = copy_containers((call.args, call.kwargs))
        try:
            return Outcome(self._runner.run(call.module, args, kwargs), call.rows)
        except RankGroupError:
            raise
        except BaseException as error:  # it belongs to the request that made the call
            if is_ctrl_c(error):
                raise
            return Outcome(None, call.rows, error)

    def _try(self, kind: _Kind, calls: Sequence[DenoiserCall], enter: EnterState) -> list[Outcome] | None:
        """Find and verify a plan for a kind, and return the results of running each call alone."""
        candidates = candidate_plans(calls)
        if kind.has_tables and not all(plan.can_share(described) for plan, described in candidates):
            return None
        outcomes: list[Outcome] | None = None
        if self.mode == "verified":
            outcomes, reason = self._run_alone_and_watch(calls, enter)
            if reason is not None and not _any_failed(outcomes):
                self._refuse(kind, calls[0], reason)
            if reason is not None or _any_failed(outcomes):
                return outcomes
        failure = _Failure("its arguments do not fit together")
        tables_differ = False
        for plan, described_calls in candidates:
            found = self._attempt(kind, plan, described_calls, enter)
            if not isinstance(found, _Failure):
                wrong = self._compare(found, outcomes)
                if wrong is None:
                    kind.plan = plan
                    if outcomes is not None:
                        self.stats.verified += 1
                        kind.trust.note_verified(calls)
                    return outcomes or found
                found = wrong
            failure = found
            tables_differ = tables_differ or failure.tables_differ
            outcomes = outcomes or self._run_alone(calls, enter)
            if failure.is_out_of_memory or _any_failed(outcomes):
                break
        outcomes = outcomes or self._run_alone(calls, enter)
        if tables_differ and not failure.is_out_of_memory:
            kind.has_tables = True  # no verdict yet: calls with equal tables can be verified later
        else:
            self._judge(kind, calls, outcomes, failure)
        return outcomes

    def _compare(self, found: list[Outcome], outcomes: list[Outcome] | None) -> _Failure | None:
        """Compare stacked results with those of running alone. Return the failure; None if they agree."""
        if self.mode == "trusted" or outcomes is None:
            return None
        pairs = zip(found, outcomes, strict=True)
        try:
            gap = agreed_difference(self._runner.agree_all, ((one.result, alone.result) for one, alone in pairs))
        except IncomparableError as error:
            return _Failure(str(error))
        if gap is None:
            return _Failure("memory ran out", is_out_of_memory=True)
        if gap > 1.0:
            reason = f"the result differs by {gap:.3g} times the tolerance from running it alone"
            return _Failure(reason, is_wrong=True)
        return None

    def _verify_again(
        self, kind: _Kind, plan: StackingPlan, calls: Sequence[DenoiserCall], enter: EnterState
    ) -> list[Outcome]:
        """Verify a stacked call of a kind with a plan. Returns the results of running its parts alone."""
        self.stats.checks += 1
        outcomes, reason = self._run_alone_and_watch(calls, enter)
        if _any_failed(outcomes):
            return outcomes
        failure = None if reason is None else _Failure(reason, is_wrong=True)
        if failure is None:
            found = self._attempt(kind, plan, calls, enter)
            failure = found if isinstance(found, _Failure) else self._compare(found, outcomes)
        if failure is None:
            kind.trust.note_verified(calls)
        elif failure.is_wrong:
            self._note_mismatch(kind, calls[0], failure.reason)
        elif not failure.tables_differ:
            self._judge(kind, calls, outcomes, failure)
        return outcomes

    def _wrong_part(
        self, kind: _Kind, calls: Sequence[DenoiserCall], found: list[Outcome], enter: EnterState
    ) -> str | None:
        """Run one part of a stacked call alone too. Return why its stacked result is wrong; None if it is right."""
        self.stats.checks += 1
        index = kind.trust.choose(calls)
        enter(index)
        alone = self._alone(calls[index])
        failure = self._compare([found[index]], [alone]) if alone.error is None else None
        return failure.reason if failure is not None and failure.is_wrong else None

    def _note_mismatch(self, kind: _Kind, call: DenoiserCall, reason: str) -> None:
        """Refuse a kind that has served calls, and report it."""
        self._refuse(kind, call, reason)
        note_mismatch(self.stats, call, reason)
        self.on_mismatch(id(kind), reason)

    def _run_alone_and_watch(
        self, calls: Sequence[DenoiserCall], enter: EnterState
    ) -> tuple[list[Outcome], str | None]:
        """Run calls one by one. Return the outcomes, and a reason if the kind must not be stacked, on all ranks."""
        outcomes = []
        drew = changed = False
        parts = parts_of([calls[0].module])
        left = []
        first = clone_tensors((calls[0].args, calls[0].kwargs))
        for index, call in enumerate(calls):
            enter(index)
            before, inputs = generator_states(call.leaves), tensor_versions(call.leaves)
            model = ModelState(parts)
            outcomes.append(self._alone(call))
            left.append(model.tensors_left())
            drew = drew or not torch.equal(before, generator_states(call.leaves))
            changed = changed or tensor_versions(call.leaves) != inputs
        place = left_by_each(left)
        told = [float(drew), float(changed), float(place is not None)]
        drew, changed, leaves = map(bool, self._runner.agree_all("how the calls went", told))
        if changed:
            return outcomes, "it changes its input in place"
        if drew:
            return outcomes, "it draws random numbers, which must come from each request's own generator"
        if not _any_failed(outcomes) and not self._repeats(calls[0].module, first, outcomes[0], enter):
            reason = "it keeps something from one call to the next: the same call gave another result later"
            self.on_stateful(reason)
            return outcomes, reason
        if leaves:
            reason = f"it leaves something of each request in {place or 'itself'}, which the pipeline may read"
            self.on_stateful(reason)
            return outcomes, reason
        return outcomes, None

    def _repeats(self, module: torch.nn.Module, arguments: Any, outcome: Outcome, enter: EnterState) -> bool:
        """Whether the first call gives the same result again, after other calls."""
        enter(0)
        again = self._alone(DenoiserCall.unexamined(module, *arguments))
        try:
            gap = agreed_difference(
                self._runner.agree_all, [(again.result, outcome.result)] if again.error is None else []
            )
        except IncomparableError:
            return True  # it cannot be decided
        return gap is None or gap <= 1.0

    def _judge(self, kind: _Kind, calls: Sequence[DenoiserCall], outcomes: list[Outcome], failure: _Failure) -> None:
        """Decide what a failed stacked forward pass means, after its parts were run alone."""
        if _any_failed(outcomes):
            return  # the call itself fails
        if not failure.is_out_of_memory:
            self._refuse(kind, calls[0], failure.reason)
            return
        kind.limit.note_out_of_memory(_rows(calls), is_known=kind.plan is not None)
        log.warning("a stacked forward pass ran out of memory; smaller ones for a while", most_rows=kind.limit.rows)

    def _refuse(self, kind: _Kind, call: DenoiserCall, reason: str) -> None:
        kind.is_refused = True
        self.note_refusal(call, reason)

    def note_refusal(self, call: DenoiserCall, reason: str) -> None:
        """Record once that calls of this kind run alone."""
        note_not_stacked(self.stats, call, reason)


def _any_failed(outcomes: list[Outcome]) -> bool:
    return any(outcome.error is not None for outcome in outcomes)


def _rows(calls: Sequence[DenoiserCall]) -> int:
    return sum(call.rows for call in calls)
