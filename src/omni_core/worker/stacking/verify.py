"""Stacking is verified, never assumed: the first stacked call of each kind is held against running its parts alone.

So are later ones with other numbers than those before: see `trust.py`.

An error out of a stacked forward may be the fault of one request. So its parts are run alone then, and what came of it
counts against the kind only if each of them succeeded.
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
    """What a call gave.

    Attributes:
        result: What the denoiser returned to it.
        rows: Rows of the forward pass that gave it.
        error: What it raised instead; never one that was raised by stacking.
    """

    result: Any
    rows: int
    error: BaseException | None = None


# Puts in place the state of the task that made the call of that index: grad mode, autocast, random generators.
EnterState = Callable[[int], None]


@dataclass(slots=True)
class _Kind:
    """What is known of one kind of call.

    Attributes:
        plan: How its calls are stacked, once that was found to be right.
        is_refused: Whether its calls are run alone from now on.
        has_tables: Whether tensors without rows were found to differ between its calls, so that nothing was found out.
        limit: How many rows fit into memory.
        trust: How far the plan was found to be right.
    """

    plan: StackingPlan | None = None
    is_refused: bool = False
    has_tables: bool = False
    limit: RowLimit = field(default_factory=RowLimit)
    trust: Trust = field(default_factory=Trust)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a stacked forward gave nothing. Not the error itself, whose frames would keep its tensors in memory."""

    reason: str
    is_wrong: bool = False
    is_out_of_memory: bool = False
    tables_differ: bool = False


class VerifiedStacking:
    """Runs groups of calls of one kind as one forward pass where that is right, and one by one where it is not.

    Args:
        mode: `"verified"`, `"trusted"` (stack without checking) or `"off"`.
        runner: What runs calls; where there are several ranks, all come to the same verdicts. None: this rank alone.
    """

    def __init__(self, mode: StackingMode, runner: CallRunner | None = None) -> None:
        self.mode = mode
        self._runner = CallRunner(StackingStats()) if runner is None else runner
        self.stats = self._runner.stats
        self._kinds: dict[Hashable, _Kind] = {}
        # Told when a kind that has served calls is found wrong: the number of the kind, and how.
        self.on_mismatch: Callable[[int, str], None] = lambda kind, reason: None
        # Told when calls were served stacked: the number of the kind, and the indices of the calls; in halves too.
        self.on_stacked: Callable[[int, Sequence[DenoiserCall]], None] = lambda kind, calls: None
        # Told when a model is found to keep something from one call to the next.
        self.on_stateful: Callable[[str], None] = lambda reason: None

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
        try:
            return self._run_within_limit(calls, enter, set())
        except RankGroupError:
            raise
        except Exception as error:  # of what these calls bring: the engine's other requests have no part in it
            if not self._runner.is_alone:
                raise
            kind = self._kind(calls)
            if is_out_of_memory(error):
                kind.limit.note_out_of_memory(_rows(calls), is_known=kind.plan is not None)
            else:
                self._refuse(kind, calls[0], f"it cannot be looked at: {described_error(error)}")
            return self._run_alone(calls, enter)

    def _kind(self, calls: Sequence[DenoiserCall]) -> _Kind:
        # Rows of one count and of several may differ: a model that splits its batch in three gets away with threes.
        return self._kinds.setdefault((calls[0].kind, frozenset(call.rows for call in calls)), _Kind())

    def _run_within_limit(
        self, calls: Sequence[DenoiserCall], enter: EnterState, begun: set[int]
    ) -> list[Outcome] | None:
        """Run calls, or parts of them. `begun` are the kinds whose turn is counted: once for a whole and its parts."""
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
        """Return what of a call is to be verified; the same on all ranks, though each looks at tensors of its own."""
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
        """Run calls as one forward. All ranks succeed, or all fail alike."""
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
        # In containers of their own: some models pop what they use off lists, and these arguments are needed again.
        args, kwargs = copy_containers((call.args, call.kwargs))
        try:
            return Outcome(self._runner.run(call.module, args, kwargs), call.rows)
        except RankGroupError:
            raise
        except BaseException as error:  # belongs to the one request that made the call
            if is_ctrl_c(error):
                raise
            return Outcome(None, call.rows, error)

    def _try(self, kind: _Kind, calls: Sequence[DenoiserCall], enter: EnterState) -> list[Outcome] | None:
        """Find the plan that is right for a kind, and return the results of running each call alone."""
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
            kind.has_tables = True  # no verdict: calls that can share them may tell more
        else:
            self._judge(kind, calls, outcomes, failure)
        return outcomes

    def _compare(self, found: list[Outcome], outcomes: list[Outcome] | None) -> _Failure | None:
        """Say what is wrong with results of a stacked forward, next to those of each call alone; None if nothing is."""
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
        """Hold a stacked call of a kind that was found right against running its parts alone, whose results count."""
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
        """Run one part of a stacked call alone as well, and say what is wrong with its result; None if nothing is."""
        self.stats.checks += 1
        index = kind.trust.choose(calls)
        enter(index)
        alone = self._alone(calls[index])
        failure = self._compare([found[index]], [alone]) if alone.error is None else None
        return failure.reason if failure is not None and failure.is_wrong else None

    def _note_mismatch(self, kind: _Kind, call: DenoiserCall, reason: str) -> None:
        """Put on record that a kind is wrong that has served calls."""
        self._refuse(kind, call, reason)
        note_mismatch(self.stats, call, reason)
        self.on_mismatch(id(kind), reason)

    def _run_alone_and_watch(
        self, calls: Sequence[DenoiserCall], enter: EnterState
    ) -> tuple[list[Outcome], str | None]:
        """Run calls one by one, and say why such calls must not be stacked, if that shows; agreed on by all ranks."""
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
        """Whether the first call gives the same again, now that others have come between."""
        enter(0)
        again = self._alone(DenoiserCall.unexamined(module, *arguments))
        try:
            gap = agreed_difference(
                self._runner.agree_all, [(again.result, outcome.result)] if again.error is None else []
            )
        except IncomparableError:
            return True  # as nobody can tell
        return gap is None or gap <= 1.0

    def _judge(self, kind: _Kind, calls: Sequence[DenoiserCall], outcomes: list[Outcome], failure: _Failure) -> None:
        """Draw the conclusion from a stacked forward that failed, when its parts have been run alone."""
        if _any_failed(outcomes):
            return  # the fault of that call, not of stacking
        if not failure.is_out_of_memory:
            self._refuse(kind, calls[0], failure.reason)
            return
        kind.limit.note_out_of_memory(_rows(calls), is_known=kind.plan is not None)
        log.warning("a stacked forward pass ran out of memory; smaller ones for a while", most_rows=kind.limit.rows)

    def _refuse(self, kind: _Kind, call: DenoiserCall, reason: str) -> None:
        kind.is_refused = True
        self.note_refusal(call, reason)

    def note_refusal(self, call: DenoiserCall, reason: str) -> None:
        """Put on record, once, that calls like this one are run alone."""
        note_not_stacked(self.stats, call, reason)


def _any_failed(outcomes: list[Outcome]) -> bool:
    return any(outcome.error is not None for outcome in outcomes)


def _rows(calls: Sequence[DenoiserCall]) -> int:
    return sum(call.rows for call in calls)
