"""Making one call of several: the pure parts, with toy denoisers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.utils import BaseOutput
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_core.worker.stacking.call import DenoiserCall
from omni_core.worker.stacking.plan import NotStackableError, StackingPlan, candidate_plans, split
from omni_core.worker.stacking.verify import VerifiedStacking


@dataclass
class Output(BaseOutput):  # type: ignore[misc]
    sample: Any = None


class Toy(torch.nn.Module):
    """A denoiser that computes what it is told to."""

    def __init__(self, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.compute = compute
        self.batches: list[int] = []

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        self.batches.append(len(hidden_states))
        return self.compute(hidden_states, *args, **kwargs)


def describe(module: torch.nn.Module, *args: Any, row_lists: bool = False, **kwargs: Any) -> DenoiserCall:
    return DenoiserCall.describe(module, args, kwargs, row_lists)


def anywhere(_index: int) -> None:
    pass


# --- stack, then split -----------------------------------------------------------------------------------------

# A leaf is named by what it holds for a request with a number of rows.
LEAVES = st.sampled_from(["rows", "rows x frames", "shared", "0-d", "one", "per row", "number", "text", "none", "list"])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(tuple),
        # Four entries, more than the rows of any request, so that none is taken for a list of rows.
        st.lists(inner, min_size=4, max_size=4),
        st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3),
        st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=2).map(OrderedDict),
        # Of a dict, a diffusers output makes its own fields.
        inner.map(lambda value: value if isinstance(value, dict) or value == "none" else Output(sample=value)),
    ),
    max_leaves=8,
)
FRAMES = 5


def fill(tree: Any, rows: int, generator: torch.Generator) -> Any:
    """Make the arguments of one request of a tree of leaf names."""
    if isinstance(tree, Output):
        return Output(sample=fill(tree.sample, rows, generator))
    if isinstance(tree, dict):
        return type(tree)((name, fill(value, rows, generator)) for name, value in tree.items())
    if isinstance(tree, (list, tuple)):
        return type(tree)(fill(value, rows, generator) for value in tree)
    random = torch.rand(rows * FRAMES, 3, generator=generator)
    return {
        "rows": random[:rows],
        "rows x frames": random,
        "shared": torch.arange(7 * 2.0).reshape(7, 2),
        "0-d": random[0, 0],
        "one": random[0, :1],
        "per row": random[:rows, 0],
        "number": 0.5,
        "text": "shape",
        "none": None,
        "list": torch.rand(rows, 2, 2, generator=generator),
    }[tree]


def assert_same_tree(left: Any, right: Any) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
        return
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        for name in left:
            assert_same_tree(left[name], right[name])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same_tree(one, other)
    else:
        assert left == right


def expected(tree: Any, value: Any, rows: int) -> Any:
    """What a request finds of its own arguments after stacking: timesteps come back with one entry per row."""
    if isinstance(tree, Output):
        return Output(sample=expected(tree.sample, value.sample, rows))
    if isinstance(tree, dict):
        return type(tree)((name, expected(tree[name], value[name], rows)) for name in tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(expected(one, other, rows) for one, other in zip(tree, value, strict=True))
    return value.expand(rows) if tree in ("0-d", "one") else value


def without_shared(tree: Any) -> Any:
    if isinstance(tree, Output):
        return Output(sample=without_shared(tree.sample))
    if isinstance(tree, dict):
        return type(tree)((name, without_shared(value)) for name, value in tree.items())
    if isinstance(tree, (list, tuple)):
        return type(tree)(without_shared(value) for value in tree)
    return "number" if tree == "shared" else tree


@settings(max_examples=150)
@given(TREES.map(without_shared), st.lists(st.integers(1, 3), min_size=2, max_size=4), st.integers(0, 2**20))
def test_each_request_gets_its_part_back(tree: Any, rows: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    module = Toy(lambda hidden_states, extra: (hidden_states, extra))
    hidden = [torch.rand(count, 2, generator=generator) for count in rows]
    extras = [fill(tree, count, generator) for count in rows]
    calls = [describe(module, one, extra=extra) for one, extra in zip(hidden, extras, strict=True)]
    assert len({call.kind for call in calls}) == 1, "a kind does not depend on the number of rows"
    args, kwargs = StackingPlan().stack(calls)
    parts = split(module(*args, **kwargs), rows)
    for part, one, extra, count in zip(parts, hidden, extras, rows, strict=True):
        assert_same_tree(part, (one, expected(tree, extra, count)))


@settings(max_examples=100)
@given(TREES, st.integers(1, 3), st.integers(2, 4), st.integers(0, 2**20))
def test_a_row_wise_denoiser_is_stacked_and_equal(tree: Any, rows: int, requests: int, seed: int) -> None:
    def compute(hidden_states: torch.Tensor, extra: Any) -> Any:
        total = hidden_states.clone()
        for leaf in torch.utils._pytree.tree_leaves(extra):
            if not isinstance(leaf, torch.Tensor):
                continue
            if leaf.ndim < 2:
                total = total + leaf.reshape(-1, 1)
            elif leaf.shape == (7, 2):
                total = total * leaf.sum()
            else:
                total = total + leaf.reshape(len(hidden_states), -1).sum(1, keepdim=True)
        return Output(sample=(total, [total * 2]))

    generator = torch.Generator().manual_seed(seed)
    module = Toy(compute)
    stacking = VerifiedStacking("verified")
    for turn in range(2):
        arguments = [(torch.rand(rows, 2, generator=generator), fill(tree, rows, generator)) for _ in range(requests)]
        calls = [describe(module, hidden, extra=extra) for hidden, extra in arguments]
        module.batches.clear()
        outcomes = stacking.run(calls, anywhere)
        assert outcomes is not None
        assert not stacking.stats.refused
        if turn == 1:
            assert module.batches == [rows * requests]
        for outcome, (hidden, extra) in zip(outcomes, arguments, strict=True):
            assert outcome.error is None
            alone = compute(hidden, extra)
            torch.testing.assert_close(outcome.result.sample[0], alone.sample[0])
            torch.testing.assert_close(outcome.result.sample[1][0], alone.sample[1][0])


@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), st.integers(0, 2**20))
def test_lists_with_an_entry_per_row(rows: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # As in Z-Image: the entries of a list are the rows, in and out, and the output wraps the list.
    module = Toy(lambda x, t: Output(sample=[one * time for one, time in zip(x, t, strict=True)]))
    arguments = [
        ([torch.rand(2, 3, generator=generator) for _ in range(count)], torch.rand(count, generator=generator))
        for count in rows
    ]
    plan = StackingPlan(row_lists=True)
    calls = [describe(module, *args, row_lists=True) for args in arguments]
    assert all(call.takes_list for call in calls)
    stacked, _ = plan.stack(calls)
    parts = split(module(*stacked), rows, row_lists=True)
    for part, args in zip(parts, arguments, strict=True):
        assert_same_tree(part, module(*args))


def test_a_list_of_layers_is_not_taken_for_rows() -> None:
    layers = [torch.arange(3.0), torch.arange(3.0) + 10, torch.arange(3.0) + 20]
    parts = split(layers, [1, 2])
    assert_same_tree(parts[0], [layer[:1] for layer in layers])
    assert_same_tree(parts[1], [layer[1:] for layer in layers])


def test_tables_that_differ_are_not_shared() -> None:
    module = Toy(lambda x, table: x * table.sum())
    calls = [describe(module, torch.rand(2, 2), torch.full((7,), float(value))) for value in range(2)]
    with pytest.raises(NotStackableError, match="differ"):
        StackingPlan(shared=frozenset({1})).stack(calls)


def test_an_output_without_rows_is_refused() -> None:
    with pytest.raises(NotStackableError, match="without rows"):
        split(torch.rand(5, 2), [1, 1])
    with pytest.raises(NotStackableError, match="without rows"):
        split((torch.rand(2, 2), torch.tensor(1.0)), [1, 1])


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"scale": 1.0}, {"scale": 2.0}),
        ({"scale": 1}, {"scale": 1.0}),
        ({"mode": "a"}, {"mode": "b"}),
        ({"flag": True}, {"flag": None}),
        ({"a": torch.zeros(2, 3)}, {"a": torch.zeros(2, 4)}),
        ({"a": torch.zeros(2, 3)}, {"a": torch.zeros(2, 3, dtype=torch.float64)}),
        ({"a": torch.zeros(2, 3)}, {"b": torch.zeros(2, 3)}),
    ],
)
def test_what_must_agree(left: dict[str, Any], right: dict[str, Any]) -> None:
    module = Toy(lambda x, **_: x)
    one, other = (describe(module, torch.zeros(2, 1), **kwargs) for kwargs in (left, right))
    assert (one.kind, one.values) != (other.kind, other.values)
    assert not candidate_plans([one, other])


def test_calls_that_record_gradients_are_not_stacked() -> None:
    assert describe(Toy(lambda x: x), torch.zeros(2, 1, requires_grad=True)).rows == 0


# --- what must be refused --------------------------------------------------------------------------------------


def run_twice(compute: Callable[..., Any], rows: int = 2, requests: int = 3) -> tuple[VerifiedStacking, Toy, list[Any]]:
    """Run three calls twice, and return what the second run gave next to what is right."""
    module, stacking = Toy(compute), VerifiedStacking("verified")
    generator = torch.Generator().manual_seed(0)
    pairs: list[Any] = []
    for _ in range(2):
        inputs = [torch.rand(rows, 4, generator=generator) for _ in range(requests)]
        calls = [describe(module, one) for one in inputs]
        module.batches.clear()
        outcomes = stacking.run(calls, anywhere)
        results = [module(one) for one in inputs] if outcomes is None else [outcome.result for outcome in outcomes]
        pairs = list(zip(results, [compute(one) for one in inputs], strict=True))
    return stacking, module, pairs


def thirds(x: torch.Tensor) -> torch.Tensor:
    plain, text, perturbed = x.chunk(3)
    return torch.cat([plain, text + plain.mean(), perturbed * 2])


@pytest.mark.parametrize(
    ("compute", "rows"),
    [
        (thirds, 3),
        (lambda x: x - x.mean(0, keepdim=True), 2),
        (lambda x: x / x.norm(), 2),
        (lambda x: x.flip(0), 2),
        (lambda x: x.cumsum(0), 2),
        (lambda x: x.mean(), 2),
    ],
)
def test_a_denoiser_that_mixes_rows_is_refused(compute: Callable[..., Any], rows: int) -> None:
    stacking, module, pairs = run_twice(compute, rows)
    assert list(stacking.stats.refused) == [f"Toy[({rows}, 4)]"]
    assert module.batches == [rows] * 3
    for result, right in pairs:
        assert torch.equal(result, right)


def test_a_denoiser_that_raises_when_stacked_is_refused() -> None:
    def compute(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            raise ValueError("two rows at most")
        return x * 2

    stacking, _, pairs = run_twice(compute)
    assert stacking.stats.refused == {"Toy[(2, 4)]": "ValueError: two rows at most"}
    assert all(torch.equal(result, right) for result, right in pairs)


def test_a_denoiser_that_raises_without_a_message_is_refused() -> None:
    def compute(x: torch.Tensor) -> torch.Tensor:
        assert len(x) <= 2
        return x

    stacking, _, _ = run_twice(compute)
    assert len(stacking.stats.refused) == 1


def test_a_denoiser_that_draws_random_numbers_is_refused() -> None:
    stacking, _, _ = run_twice(lambda x: x + torch.rand(x.shape))
    [reason] = stacking.stats.refused.values()
    assert "random numbers" in reason


def test_a_denoiser_that_raises_later_is_run_alone_from_then_on() -> None:
    module = Toy(lambda x, t: x * t.reshape(-1, 1))
    stacking = VerifiedStacking("verified")
    calls = [describe(module, torch.rand(1, 4), torch.rand(1)) for _ in range(3)]
    assert stacking.run(calls, anywhere) is not None
    module.compute = lambda x, t: x.reshape(1, 4)
    outcomes = stacking.run(calls, anywhere)
    assert outcomes is not None
    for outcome, call in zip(outcomes, calls, strict=True):
        assert torch.equal(outcome.result, call.args[0])
    assert stacking.run(calls, anywhere) is None
    assert len(stacking.stats.refused) == 1


def test_an_output_that_cannot_be_looked_into_is_refused() -> None:
    class Opaque:
        def __init__(self, sample: torch.Tensor) -> None:
            self.sample = sample

    module, stacking = Toy(lambda x: Opaque(x * 2)), VerifiedStacking("verified")
    for _ in range(2):
        inputs = [torch.rand(2, 4) for _ in range(3)]
        outcomes = stacking.run([describe(module, one) for one in inputs], anywhere)
    assert outcomes is None
    assert len(stacking.stats.refused) == 1


def test_an_error_of_one_call_is_that_calls_own() -> None:
    def compute(x: torch.Tensor) -> torch.Tensor:
        if (x < 0).any():
            raise ValueError("negative")
        return x

    module, stacking = Toy(compute), VerifiedStacking("verified")
    outcomes = stacking.run([describe(module, torch.full((1, 2), value)) for value in (1.0, -1.0, 2.0)], anywhere)
    assert outcomes is not None
    assert [outcome.error is not None for outcome in outcomes] == [False, True, False]
    assert not stacking.stats.refused


def test_a_denoiser_that_empties_its_arguments_is_stacked() -> None:
    # As UNets do with the features of a T2I-adapter: they pop them off a list.
    def compute(x: torch.Tensor, residuals: list[torch.Tensor]) -> torch.Tensor:
        while residuals:
            x = x + residuals.pop(0)
        return x

    module, stacking = Toy(compute), VerifiedStacking("verified")
    for _ in range(2):
        inputs = [(torch.rand(2, 4), [torch.rand(2, 4), torch.rand(2, 4)]) for _ in range(3)]
        right = [compute(x, list(residuals)) for x, residuals in inputs]
        outcomes = stacking.run([describe(module, *args) for args in inputs], anywhere)
        assert outcomes is not None
        for outcome, one in zip(outcomes, right, strict=True):
            torch.testing.assert_close(outcome.result, one)
    assert not stacking.stats.refused
    assert module.batches[-1] == 6


# --- modes and memory ------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(2, 9), st.integers(1, 12))
def test_out_of_memory_splits_in_halves(rows: int, requests: int, room: int) -> None:
    room = max(room, rows)

    def compute(x: torch.Tensor) -> torch.Tensor:
        if len(x) > room:
            raise torch.OutOfMemoryError("out of memory")
        return x * 3

    module, stacking = Toy(compute), VerifiedStacking("verified")
    # Found to be right while there was room.
    two = [describe(module, torch.rand(rows, 2)) for _ in range(2)]
    module.compute = lambda x: x * 3
    assert stacking.run(two, anywhere) is not None
    module.compute = compute
    for _ in range(3):
        inputs = [torch.rand(rows, 2) for _ in range(requests)]
        outcomes = stacking.run([describe(module, one) for one in inputs], anywhere)
        assert outcomes is not None
        for outcome, one in zip(outcomes, inputs, strict=True):
            assert outcome.error is None
            torch.testing.assert_close(outcome.result, one * 3)
    assert not stacking.stats.refused
    # What was learned holds: in the end nothing runs out of memory any more.
    module.batches.clear()
    stacking.run([describe(module, torch.rand(rows, 2)) for _ in range(requests)], anywhere)
    assert max(module.batches) <= room


def test_out_of_memory_at_the_first_try_is_no_verdict() -> None:
    def compute(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return x

    module, stacking = Toy(compute), VerifiedStacking("verified")
    calls = [describe(module, torch.rand(2, 2)) for _ in range(2)]
    assert stacking.run(calls, anywhere) is not None
    assert not stacking.stats.refused
    module.compute = lambda x: x
    stacking.run(calls, anywhere)
    assert stacking.stats.verified == 1


def test_off_stacks_nothing_and_trusted_stacks_without_checking() -> None:
    module = Toy(lambda x: x - x.mean(0, keepdim=True))
    calls = [describe(module, torch.rand(2, 2)) for _ in range(3)]
    assert VerifiedStacking("off").run(calls, anywhere) is None
    assert not module.batches
    assert VerifiedStacking("trusted").run(calls, anywhere) is not None
    assert module.batches == [6]
    assert VerifiedStacking("verified").run(calls[:1], anywhere) is None
