"""Models that are wrong in company, and right with the company that they happen to have first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from omni_core.worker.stacking.call import DenoiserCall
from omni_core.worker.stacking.difference import difference
from omni_core.worker.stacking.verify import VerifiedStacking

STEPS = 100


class Model(torch.nn.Module):
    """A denoiser that computes what it is told to, and notes with how many rows."""

    def __init__(self, compute: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.batches: list[int] = []
        self.kept: torch.Tensor | None = None
        self.maps: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        return self.compute(self, x, timestep, prompt)


def right(_: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return x * 0.9 + timestep[:, None] / 1000 + prompt


def first_timestep(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return right(model, x, timestep[:1].expand(len(x)), prompt)


def last_timestep(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return right(model, x, timestep[-1:].expand(len(x)), prompt)


def last_row_decides(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """As where experts take turns at some timestep."""
    return right(model, x, timestep, prompt) + (0.3 if timestep[-1] < 50 else 0)


def mixes_beside_infinities(
    model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
) -> torch.Tensor:
    result = right(model, x, timestep, prompt) - x.mean(0) * 0.1 * (len(x) > 1)
    return torch.cat([result[:, :3], torch.full_like(result[:, :1], float("-inf"))], 1)


def mixes_beside_a_large_channel(
    model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
) -> torch.Tensor:
    result = right(model, x, timestep, prompt) - x.mean(0) * 0.5 * (len(x) > 1)
    return torch.cat([result[:, :3], torch.full_like(result[:, :1], -1e6)], 1)


def leaves_a_map(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    model.kept = x * 0.5
    return right(model, x, timestep, prompt)


def leaves_a_map_in_a_list(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    model.maps = [x * 0.5]
    return right(model, x, timestep, prompt)


def leaves_a_table(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """The same whatever the request, as tables of positions are."""
    model.kept = torch.arange(4.0)
    return right(model, x, timestep, prompt) + model.kept * 0


def first_prompt(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return right(model, x, timestep, prompt[:1])


def above_some_rows(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return right(model, x, timestep, prompt) + (x.mean() if len(x) > 4 else 0)


def below_some_timestep(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return right(model, x, timestep, prompt) + (x.mean() if timestep[0] < 30 and len(x) > 1 else 0)


def changes_its_input(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return right(model, x.mul_(0.5), timestep, prompt)


def keeps_a_residual(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    kept, model.kept = model.kept, x.mean().detach()
    return right(model, x, timestep, prompt) + (0 if kept is None else kept)


def draws(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return right(model, x, timestep, prompt) + torch.randn(()) * 0


@dataclass
class Served:
    """What a run came to: whose outputs were wrong, who was told, and what was found out about the model."""

    wrong: set[int]
    told: set[int]
    stateful: list[str]
    stacking: VerifiedStacking
    model: Model
    stacked: int = 0
    by_kind: dict[int, set[int]] = field(default_factory=dict)


def serve(compute: Callable[..., torch.Tensor], begins: list[int], prompts: list[float]) -> Served:
    """Run requests that begin at their moments and make `STEPS` calls each, with the company there is.

    Wrong is what differs from the same request on a model of its own.
    """
    model, stacking = Model(compute), VerifiedStacking("verified")
    served = Served(set(), set(), [], stacking, model)
    generator = torch.Generator().manual_seed(0)
    states = [torch.rand(1, 4, generator=generator) + 0.5 for _ in begins]
    waiting: list[int] = []
    calls: list[DenoiserCall] = []

    def note_stacked(kind: int, some: object) -> None:
        assert isinstance(some, list)
        served.stacked += 1
        ids = {id(call) for call in some}
        indices = {index for index, call in zip(waiting, calls, strict=True) if id(call) in ids}
        served.by_kind.setdefault(kind, set()).update(indices)

    stacking.on_stacked = note_stacked
    stacking.on_mismatch = lambda kind, _reason: served.told.update(served.by_kind.get(kind, ()))
    stacking.on_stateful = served.stateful.append
    alone = [Model(compute) for _ in begins]
    wanted = [state.clone() for state in states]
    with torch.no_grad():
        for moment in range(STEPS + max(begins)):
            waiting = [index for index, begin in enumerate(begins) if begin <= moment < begin + STEPS]
            inputs = [
                (torch.tensor([float(STEPS - 1 - moment + begins[index])]), torch.full((1, 4), prompts[index]))
                for index in waiting
            ]
            for index, (timestep, prompt) in zip(waiting, inputs, strict=True):
                wanted[index] = alone[index](wanted[index], timestep, prompt)
            calls = [
                DenoiserCall.describe(model, (states[index], timestep, prompt), {}, False)
                for index, (timestep, prompt) in zip(waiting, inputs, strict=True)
            ]
            outcomes = stacking.run(calls, lambda _index: None) if len(calls) > 1 else None
            for position, index in enumerate(waiting):
                result = model(*calls[position].args) if outcomes is None else outcomes[position].result
                states[index] = result.clone()
    gaps = [float((one - other).abs().max() / other.abs().max()) for one, other in zip(states, wanted, strict=True)]
    served.wrong = {index for index, gap in enumerate(gaps) if gap > 1e-4}
    return served


TOGETHER, STAGGERED, LATE = [0] * 6, [0, 0, 40, 40, 60, 60], [0, 0, 3, 6, 9, 12]
SAME, DIFFERENT, ONE_DIFFERENT = [0.5] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.5, 0.5, 0.5, 0.5, 0.5, 0.9]
COMPANIES = {
    f"{one}, {other}": (begins, prompts)
    for one, begins in {"together": TOGETHER, "staggered": STAGGERED, "late": LATE}.items()
    for other, prompts in {"same": SAME, "different": DIFFERENT, "one different": ONE_DIFFERENT}.items()
}


@pytest.mark.parametrize("company", COMPANIES)
@pytest.mark.parametrize("compute", [first_timestep, last_timestep, first_prompt, above_some_rows])
def test_what_differs_for_the_first_time_is_verified_again(compute: Callable[..., torch.Tensor], company: str) -> None:
    assert serve(compute, *COMPANIES[company]).wrong == set()


def test_what_goes_wrong_late_is_found_by_samples_and_told() -> None:
    # Thirty calls of a hundred are wrong, and no sample need be among those of the first requests.
    begins = [STEPS * number for number in range(15) for _ in range(4)]
    served = serve(below_some_timestep, begins, [index / 60 for index in range(60)])
    assert served.wrong, "or this shows nothing"
    assert served.wrong <= served.told
    assert max(served.wrong) < 50, "found, and right from then on"
    assert served.stacking.stats.mismatches
    assert set(served.stacking.stats.mismatches) == set(served.stacking.stats.refused)


@pytest.mark.parametrize("company", COMPANIES)
def test_a_model_that_changes_its_input_is_never_stacked(company: str) -> None:
    served = serve(changes_its_input, *COMPANIES[company])
    assert served.wrong == set()
    assert list(served.stacking.stats.refused.values()) == ["it changes its input in place"]
    assert served.stacked == 0


@pytest.mark.parametrize("company", COMPANIES)
def test_a_model_that_keeps_something_from_one_call_to_the_next_is_named(company: str) -> None:
    served = serve(keeps_a_residual, *COMPANIES[company])
    assert "keeps something" in served.stateful[0]
    assert served.stacked == 0


@pytest.mark.parametrize("company", COMPANIES)
def test_right_models_are_stacked_and_seldom_looked_at(company: str) -> None:
    served = serve(right, *COMPANIES[company])
    assert (served.wrong, served.told, served.stateful) == (set(), set(), [])
    assert not served.stacking.stats.refused
    assert served.stacking.stats.verified == 1
    # Up to three sizes, two tensors that may begin to differ, and samples with the 4th, 16th and 64th call.
    assert 3 <= served.stacking.stats.checks <= 8
    assert max(served.model.batches) == 6


@pytest.mark.parametrize("compute", [mixes_beside_infinities, mixes_beside_a_large_channel])
def test_what_is_wrong_is_not_hidden_by_larger_numbers(compute: Callable[..., torch.Tensor]) -> None:
    stacking, model = VerifiedStacking("verified"), Model(compute)
    calls = [
        DenoiserCall.describe(model, (torch.rand(1, 4), torch.tensor([9.0]), torch.rand(1, 4)), {}, False)
        for _ in range(3)
    ]
    outcomes = stacking.run(calls, lambda _index: None)
    assert outcomes is not None
    for outcome, call in zip(outcomes, calls, strict=True):
        assert torch.equal(outcome.result, model(*call.args))
    assert "times the tolerance" in next(iter(stacking.stats.refused.values()))


def test_infinities_at_the_same_places_are_no_difference() -> None:
    one = torch.tensor([[1.0, float("inf"), float("-inf"), float("nan")]])
    assert difference(one, one.clone()) == 0.0
    for place, value in ((1, float("-inf")), (1, 1e30), (0, float("inf")), (3, 1.0)):
        other = one.clone()
        other[0, place] = value
        assert difference(one, other) == difference(other, one) == float("inf")


@pytest.mark.parametrize("requests", [2, 4])
def test_whichever_row_a_model_takes_for_all_a_sample_finds_it(requests: int) -> None:
    begins = [number // requests * STEPS + number % requests * 20 for number in range(40 * requests)]
    served = serve(last_row_decides, begins, [index / 999 for index in range(len(begins))])
    assert served.wrong, "or this shows nothing"
    assert served.stacking.stats.mismatches
    assert served.wrong <= served.told


@pytest.mark.parametrize("compute", [leaves_a_map, leaves_a_map_in_a_list])
def test_a_model_that_leaves_something_of_each_request_is_named(compute: Callable[..., torch.Tensor]) -> None:
    served = serve(compute, TOGETHER, DIFFERENT)
    assert served.stacked == 0
    assert "leaves something of each request in Model." in served.stateful[0]


def test_a_model_that_leaves_what_is_the_same_for_all_is_stacked() -> None:
    served = serve(leaves_a_table, TOGETHER, DIFFERENT)
    assert (served.wrong, served.stateful) == (set(), [])
    assert served.stacked > 0


@torch.inference_mode()
def test_tables_of_inference_mode_are_looked_at_each_time() -> None:
    """They count no versions."""

    class Table(torch.nn.Module):
        def forward(self, x: torch.Tensor, timestep: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return x * table[0] + table[1]

    stacking, model = VerifiedStacking("verified"), Table()
    tables = [torch.ones(2, 4) for _ in range(3)]
    for step in range(3):
        calls = [
            DenoiserCall.describe(model, (torch.rand(1, 4), torch.tensor([9.0]), table), {}, False) for table in tables
        ]
        outcomes = stacking.run(calls, lambda _index: None)
        for index, call in enumerate(calls):
            result = model(*call.args) if outcomes is None else outcomes[index].result
            assert torch.allclose(result, model(*call.args))
        for number, table in enumerate(tables):
            table.mul_(number + step)


def test_a_model_that_draws_is_refused() -> None:
    assert serve(draws, TOGETHER, SAME).stacked == 0
