"""A stacked forward that raises: innocents get their result, the culprit its own error, and the kind stays open."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_core.error_text import is_ctrl_c
from omni_core.worker.parallel.rank_group import RankGroup
from omni_core.worker.stacking.call import DenoiserCall
from omni_core.worker.stacking.row_limit import RowLimit, is_out_of_memory
from omni_core.worker.stacking.verify import VerifiedStacking
from worker.failing_company import ERRORS, MEMORY, Company, Found, run_company
from worker.rank_processes import RankProcesses

COMPANIES = st.builds(
    Company,
    rows=st.lists(st.integers(1, 3), min_size=2, max_size=5).map(tuple),
    culprit=st.integers(0, 1),
    where=st.sampled_from(["alone too", "in company", "stack", "split", "compare"]),
    error=st.sampled_from(sorted(ERRORS)),
    is_known=st.booleans(),
    mode=st.sampled_from(["verified", "trusted"]),
)


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    with RankProcesses() as processes:
        yield processes


def check(company: Company, found: Found) -> None:
    """What must hold, whatever went wrong."""
    assert found.are_right
    assert found.is_right_later
    expected: list[str | None] = [None] * len(company.rows)
    if company.where == "alone too":
        expected[company.culprit] = type(ERRORS[company.error]()).__name__
    assert found.errors == expected
    # Only where every part succeeded alone, the kind is at fault. Memory is nobody's.
    is_verdict = company.where == "split" or (company.where in ("in company", "stack") and company.error not in MEMORY)
    if company.where == "compare":
        is_verdict = company.mode == "verified" and not company.is_known
    assert bool(found.refused) == is_verdict, found.refused
    assert (found.turns is None) == is_verdict
    if company.where == "alone too":
        assert found.turns is not None
        assert found.turns <= 2, "one turn to verify it, then it is stacked"


@settings(max_examples=200)
@given(COMPANIES)
def test_one_call_that_goes_wrong(company: Company) -> None:
    check(company, run_company(RankGroup.alone(), company))


TABLE = [
    Company((2, 2, 2), 1, where, error, is_known, mode, rank)
    for where in ("alone too", "in company", "stack", "split", "compare")
    for error in ("index", "cpu memory", "cancelled")
    for is_known in (False, True)
    for mode in ("verified", "trusted")
    for rank in (None, 1)
    if not (where in ("split", "compare") and error != "index") and not (where == "split" and rank is not None)
]


def test_one_call_that_goes_wrong_on_two_ranks(ranks: RankProcesses) -> None:
    def run(group: RankGroup, companies: list[Company]) -> list[Found]:
        return [run_company(group, company) for company in companies]

    by_rank = ranks.run(run, TABLE)
    for company, first, second in zip(TABLE, *by_rank, strict=True):
        # The rank on which it happened knows more to say.
        same = dataclasses.replace(second, refused=first.refused)
        assert first == same, f"the ranks come to different ends: {company}"
        assert len(first.refused) == len(second.refused), company
        # A wrong split of the rows is refused by the ranks themselves, which then run the stacked call whole.
        if company.where == "alone too" or company.error in MEMORY:
            check(company, first)
        assert first.are_right, company
        assert first.is_right_later, company


def test_tables_that_differ_between_two_requests_are_no_verdict_on_the_kind() -> None:
    # As with Flux: pictures of 512 x 1024 and of 1024 x 512 have as many tokens, at other places.
    class Rotated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.batches: list[int] = []

        def forward(self, hidden_states: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            self.batches.append(len(hidden_states))
            return hidden_states * table.reshape(1, 7)

    module, stacking = Rotated(), VerifiedStacking("verified")
    wide, high = torch.rand(7, 1), torch.rand(7, 1)

    def run(*tables: torch.Tensor) -> None:
        calls = [DenoiserCall.describe(module, (torch.rand(2, 7), table.clone()), {}, False) for table in tables]
        module.batches.clear()
        found = stacking.run(calls, lambda _index: None)
        for number, call in enumerate(calls):
            right = call.args[0] * call.args[1].reshape(1, 7)
            assert found is None or torch.allclose(found[number].result, right)

    run(wide, high)
    assert not stacking.stats.refused
    run(wide, high)
    assert module.batches == [], "what is known to tell nothing is not tried again"
    run(wide, wide)
    run(high, high, high)
    assert module.batches == [2, 2, 2, 2, 6], "verified again, as there are more rows than ever"
    run(high, high, high)
    assert module.batches == [6]
    run(wide, high)
    assert not stacking.stats.refused


def test_what_memory_allows_is_found_again() -> None:
    limit = RowLimit()
    limit.note_success(12)
    limit.note_out_of_memory(16, is_known=True)
    assert limit.rows == 12, "what has worked is tried first"
    limit.note_out_of_memory(12, is_known=True)
    assert limit.rows == 6
    waits = []
    for _ in range(3):
        wait = 0
        while not limit.allows(16):
            wait += 1
            limit.begin_turn(16)
        waits.append(wait)
        limit.note_out_of_memory(16, is_known=True)
    assert waits == [32, 64, 128], "the longer it lasts, the rarer it is tried"
    for _ in range(12):
        limit.note_out_of_memory(1, is_known=True)
    assert limit.rows == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *[(ERRORS[name](), name in MEMORY) for name in ERRORS],
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (ValueError("can't allocate memory"), False),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_what_is_a_lack_of_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_a_real_allocation_that_fails_is_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


def test_ctrl_c_ends_a_stacked_forward_and_is_no_requests_error() -> None:
    def interrupted(_x: Any) -> Any:
        raise KeyboardInterrupt

    module = torch.nn.Module()
    module.forward = interrupted  # type: ignore[method-assign]
    calls = [DenoiserCall.describe(module, (torch.rand(2, 2),), {}, False) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        VerifiedStacking("trusted").run(calls, lambda _index: None)
    assert is_ctrl_c(KeyboardInterrupt())
    assert not is_ctrl_c(SystemExit())
