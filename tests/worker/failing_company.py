"""A group of denoiser calls of which one goes wrong, or the stacking of which does; and a healthy group after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from omni_core.outputs import StackingStats
from omni_core.worker.parallel.batch_parallel import BatchParallel
from omni_core.worker.parallel.rank_group import RankGroup
from omni_core.worker.stacking.call import DenoiserCall
from omni_core.worker.stacking.plan import StackingPlan
from omni_core.worker.stacking.verify import Outcome, StackingMode, VerifiedStacking

# In the first column of the rows of the call that goes wrong.
CULPRIT = 99.0
# More turns than those for which fewer rows are run when memory was short.
MANY_TURNS = 20

ERRORS: dict[str, Callable[[], BaseException]] = {
    "value": lambda: ValueError("bad value"),
    "index": lambda: IndexError("index out of range in self"),
    "cuda memory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    "cpu memory": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
    "host memory": MemoryError,
    "exit": lambda: SystemExit(3),
    "generator exit": GeneratorExit,
    "cancelled": asyncio.CancelledError,
}
MEMORY = ("cuda memory", "cpu memory", "host memory")

Where = Literal["alone too", "in company", "stack", "split", "compare"]


@dataclass(frozen=True)
class Company:
    """What goes wrong, and how.

    Attributes:
        rows: Rows of each call.
        culprit: Number of the call that goes wrong.
        where: `"alone too"`: its forward, whoever else is in it. `"in company"`: only a forward of several calls.
            `"stack"`: putting the arguments together. `"split"`: the result of several calls has no rows.
            `"compare"`: results cannot be compared.
        error: Name of the error.
        is_known: Whether the kind of call was stacked before.
        mode: That of stacking.
        rank: On which rank alone; None: on all.
    """

    rows: tuple[int, ...]
    culprit: int
    where: Where
    error: str
    is_known: bool
    mode: StackingMode = "verified"
    rank: int | None = None


class Incomparable(torch.Tensor):
    """A result that cannot be looked at."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.equal, torch.Tensor.isnan):
            raise RuntimeError("no such kernel")
        return super().__torch_function__(func, types, args, kwargs)


class Denoiser(torch.nn.Module):
    """Doubles its input, unless it is to go wrong."""

    def __init__(self, company: Company, group: RankGroup) -> None:
        super().__init__()
        self.company = company
        self.is_healthy = True
        self.is_alone = False
        self.is_here = company.rank in (None, group.rank)

    def forward(self, hidden_states: torch.Tensor) -> Any:
        where = self.company.where
        has_culprit = bool((hidden_states[:, 0] == CULPRIT).any())
        if self.is_here and has_culprit and not self.is_healthy:
            if where == "alone too" or (where == "in company" and not self.is_alone):
                raise ERRORS[self.company.error]()
            if where == "split" and not self.is_alone:
                return hidden_states.sum()
            if where == "compare":
                return (hidden_states * 2).as_subclass(Incomparable)
        return hidden_states * 2


class FailingPlans:
    """Lets putting arguments together fail where the culprit is among them."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._stack = StackingPlan.stack

    def __enter__(self) -> None:
        denoiser, stack = self._denoiser, self._stack

        def failing(plan: StackingPlan, calls: Any) -> Any:
            if not denoiser.is_healthy and denoiser.is_here and denoiser.company.where == "stack":
                raise ERRORS[denoiser.company.error]()
            return stack(plan, calls)

        StackingPlan.stack = failing  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        StackingPlan.stack = self._stack  # type: ignore[method-assign]


@dataclass
class Found:
    """What came of it.

    Attributes:
        errors: For each call, the name of the type of its error, or None.
        are_right: Whether the results of the others are right.
        refused: Why the kind is run alone from then on.
        turns: Turns of a healthy group after which it was one forward; None if that did not happen.
        is_right_later: Whether the results of the healthy groups were right.
    """

    errors: list[str | None]
    are_right: bool
    refused: list[str]
    turns: int | None
    is_right_later: bool


def run_company(group: RankGroup, company: Company) -> Found:
    """Run a group that goes wrong, then healthy ones."""
    denoiser = Denoiser(company, group)
    parallel = BatchParallel(group, StackingStats()) if group.world_size > 1 else None
    stacking = VerifiedStacking(company.mode, parallel)
    generator = torch.Generator().manual_seed(0)

    def run(is_healthy: bool) -> tuple[list[Outcome | None], list[torch.Tensor]]:
        inputs = [torch.rand(rows, 4, generator=generator) for rows in company.rows]
        if not is_healthy:
            inputs[company.culprit][:, 0] = CULPRIT
        calls = [DenoiserCall.describe(denoiser, (one,), {}, row_lists=False) for one in inputs]
        denoiser.is_healthy = is_healthy
        entered: list[int] = []
        found = _watched(stacking, denoiser, calls, entered)
        return found, [one * 2 for one in inputs]

    with torch.no_grad(), FailingPlans(denoiser):
        if company.is_known:
            for _ in range(2):
                run(is_healthy=True)
        outcomes, right = run(is_healthy=False)
        errors = [type(one.error).__name__ if one is not None and one.error is not None else None for one in outcomes]
        are_right = all(_is_right(one, two) for one, two in zip(outcomes, right, strict=True) if _has_result(one))
        turns, is_right_later = None, True
        for turn in range(MANY_TURNS):
            before, checks = stacking.stats.forwards, stacking.stats.checks
            outcomes, right = run(is_healthy=True)
            is_right_later = is_right_later and all(map(_is_right, outcomes, right))
            if all(one is not None and one.rows == sum(company.rows) for one in outcomes):
                assert stacking.stats.forwards == before + 1 + stacking.stats.checks - checks
                turns = turn + 1
                break
    return Found(errors, are_right, list(stacking.stats.refused.values()), turns, is_right_later)


def _watched(
    stacking: VerifiedStacking, denoiser: Denoiser, calls: list[DenoiserCall], entered: list[int]
) -> list[Outcome | None]:
    """Run calls as `ModelRunner` does, and let the denoiser know whether a call runs alone."""
    rows = [call.rows for call in calls]
    runner = stacking._runner
    run_call = runner.run

    def noted(module: Any, args: Any, kwargs: Any) -> Any:
        denoiser.is_alone = any(args[0] is call.args[0] for call in calls)
        return run_call(module, args, kwargs)

    runner.run = noted  # type: ignore[method-assign]
    try:
        found = stacking.run(calls, entered.append)
    finally:
        runner.run = run_call  # type: ignore[method-assign]
    if found is not None:
        assert len(found) == len(rows)
        return list(found)
    return [None] * len(rows)


def _has_result(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.error is None


def _is_right(outcome: Outcome | None, right: torch.Tensor) -> bool:
    # None: the task runs the call itself, as bare diffusers does.
    return outcome is None or torch.equal(outcome.result.as_subclass(torch.Tensor), right)
