"""Models that are wrong in company, and right with the company that they happen to have first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from omni_core.worker.stacking.call import DenoiserCall
from omni_core.worker.stacking.verify import VerifiedStacking

STEPS = 100


class Model(torch.nn.Module):
    """A denoiser that computes what it is told to, and notes with how many rows."""

    def __init__(self, compute: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.batches: list[int] = []
        self.kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        return self.compute(self, x, timestep, prompt)


def right(_: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return x * 0.9 + timestep[:, None] / 1000 + prompt


def first_timestep(model: Model, x: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return right(model, x, timestep[:1].expand(len(x)), prompt)


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
@pytest.mark.parametrize("compute", [first_timestep, first_prompt, above_some_rows])
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


def test_a_model_that_draws_is_refused() -> None:
    assert serve(draws, TOGETHER, SAME).stacked == 0
