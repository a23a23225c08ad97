"""The grid of the ranks of a replica."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_core.config import OmniDiffusionConfig
from omni_core.worker.parallel.layout import DIMENSIONS, ParallelLayout

SIZE = st.integers(1, 4)
LAYOUTS = st.builds(ParallelLayout, SIZE, SIZE, SIZE, SIZE)


@given(LAYOUTS)
def test_each_rank_has_a_place_of_its_own(layout: ParallelLayout) -> None:
    places = [layout.coordinates(rank) for rank in range(layout.world_size)]
    assert [layout.rank(place) for place in places] == list(range(layout.world_size))
    assert places == sorted(places)
    assert set(places) == set(itertools.product(*map(range, layout.shape)))


@given(LAYOUTS, st.lists(st.sampled_from(DIMENSIONS), unique=True))
def test_parts_hold_each_rank_once_and_differ_along_their_dimensions_only(
    layout: ParallelLayout, along: list[str]
) -> None:
    parts = layout.parts(*along)  # type: ignore[arg-type]
    assert sorted(itertools.chain(*parts)) == list(range(layout.world_size))
    sizes = dict(zip(DIMENSIONS, layout.shape, strict=True))
    for part in parts:
        assert part == sorted(part)
        places = [layout.coordinates(rank) for rank in part]
        for name, values in zip(DIMENSIONS, zip(*places, strict=True), strict=True):
            assert len(set(values)) == (sizes[name] if name in along else 1)


@given(LAYOUTS)
def test_all_along_nothing_and_along_everything(layout: ParallelLayout) -> None:
    assert layout.parts() == [[rank] for rank in range(layout.world_size)]
    assert layout.parts(*DIMENSIONS) == [list(range(layout.world_size))]


@pytest.mark.parametrize(
    ("along", "parts"),
    [
        (["cfg"], [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (["ring"], [[0, 2], [1, 3], [4, 6], [5, 7]]),
        (["ulysses"], [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (["ring", "ulysses"], [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ],
)
def test_the_order_that_is_documented(along: list[str], parts: list[list[int]]) -> None:
    assert ParallelLayout(cfg=2, ring=2, ulysses=2).parts(*along) == parts  # type: ignore[arg-type]
    assert ParallelLayout(ulysses=2, tensor=2).parts("tensor") == [[0, 1], [2, 3]]


def test_of_a_configuration() -> None:
    config = OmniDiffusionConfig(cfg_parallel_size=2, ulysses_degree=3, ring_degree=5, tensor_parallel_size=7)
    layout = ParallelLayout.of(config)
    assert layout == ParallelLayout(cfg=2, ring=5, ulysses=3, tensor=7)
    assert layout.world_size == config.ranks_per_replica == 210
    assert layout.sequence == 15
    assert [ParallelLayout(cfg=2).shares_forwards, ParallelLayout(tensor=2).shares_forwards] == [False, True]
