"""Torch's global generator: requests draw what the bare pipeline draws, and the program does not notice."""

from __future__ import annotations

import concurrent.futures
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.worker import model_runner
from small_pipelines import drawing
from small_pipelines.drawing import BUILDERS, REQUEST

SEEDS = (5, 6, 7)
# A row that is computed in company differs in the last bits; other noise makes a hundred times the difference.
TOLERANCE = 1e-4


@functools.cache
def bare(place: str, seed: int, callback: bool = False) -> Any:
    pipeline = BUILDERS[place]()
    pipeline.set_progress_bar_config(disable=True)
    more = {"callback_on_step_end": drawing.noisy_callback} if callback else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pipeline(**REQUEST, **more, generator=torch.Generator().manual_seed(seed)).images


def request(seed: int, **more: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(**REQUEST, seed=seed, **more)


def gaps(engine: DiffusionEngine, place: str, seeds: tuple[int, ...] = SEEDS) -> list[float]:
    """Run requests in company, and return how far each is from the bare pipeline."""
    outputs = engine.step([request(seed) for seed in seeds])
    return [
        float(np.abs(output.raise_for_error().images - bare(place, seed)).max())
        for output, seed in zip(outputs, seeds, strict=True)
    ]


@pytest.fixture(params=[True, False], ids=["side_thread", "no_side_thread"])
def side_thread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With and without a thread for autoencoders, whatever the number of cores."""
    has_room = bool(request.param)
    monkeypatch.setattr(model_runner, "has_room_for_side_thread", lambda device: has_room)
    return has_room


@pytest.mark.parametrize("place", sorted(BUILDERS))
@pytest.mark.usefixtures("side_thread")
def test_alone_and_in_company(place: str) -> None:
    expected = [bare(place, seed) for seed in SEEDS]
    assert place == "nowhere" or float(np.abs(expected[0] - bare("nowhere", SEEDS[0])).max()) > 10 * TOLERANCE
    pipeline = BUILDERS[place]()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    with DiffusionEngine(pipeline=pipeline) as engine:
        for seed, wanted in zip(SEEDS, expected, strict=True):
            [output] = engine.step([request(seed)])
            assert np.array_equal(output.raise_for_error().images, wanted)
        assert max(gaps(engine, place)) <= TOLERANCE
        # A verdict may have come of the first time: all runs stacked now, if anything.
        assert max(gaps(engine, place)) <= TOLERANCE
    assert torch.equal(torch.get_rng_state(), state), "the program's own generator was disturbed"


@pytest.mark.usefixtures("side_thread")
def test_a_callback_that_draws() -> None:
    with DiffusionEngine(pipeline=drawing.in_decode()) as engine:
        extra = {"callback_on_step_end": drawing.noisy_callback}
        outputs = engine.step([request(seed, extra_args=extra) for seed in SEEDS])
    for output, seed in zip(outputs, SEEDS, strict=True):
        expected = bare("in_decode", seed, callback=True)
        assert float(np.abs(output.raise_for_error().images - expected).max()) <= TOLERANCE


def test_two_denoisers_that_draw_are_not_stacked() -> None:
    with DiffusionEngine(pipeline=drawing.in_denoiser()) as engine:
        assert max(gaps(engine, "in_denoiser")) == 0.0
        assert "draws random numbers" in str(engine.stats())


def draw_in_the_program(number: int) -> list[Any]:
    """What a program may do with the global generator, round by round."""
    if number % 3 == 0:
        torch.manual_seed(number)
    if number % 7 == 0:
        torch.set_rng_state(torch.Generator().manual_seed(number).get_state())
    drawn = [torch.randn(17), torch.randint(0, 1000, (5,)), torch.randperm(9), torch.rand(3).bernoulli_()]
    drawn.append(torch.nn.functional.dropout(torch.ones(8), 0.5, training=True))
    if number % 5 == 0:
        with torch.random.fork_rng():
            drawn.append(torch.empty(4).exponential_())
    return drawn


@contextmanager
def a_program_that_draws() -> Iterator[list[list[Any]]]:
    """Draw without a pause in a thread of the program."""
    rounds: list[list[Any]] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            rounds.append(draw_in_the_program(len(rounds)))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield rounds
    finally:
        ended.set()
        thread.join(60)
        assert not thread.is_alive()


def test_engines_and_the_program_do_not_see_each_other() -> None:
    places = ("everywhere", "reseeding")
    for place in places:
        for seed in SEEDS:
            bare(place, seed)
    engines = [DiffusionEngine(pipeline=BUILDERS[place]()) for place in places]
    try:
        with concurrent.futures.ThreadPoolExecutor(2) as pool, a_program_that_draws() as rounds:
            for _ in range(2):
                found = list(pool.map(gaps, engines, places))
                assert max(max(found)) <= TOLERANCE
    finally:
        for engine in engines:
            engine.close()
    state = torch.get_rng_state()
    assert len(rounds) > 3
    for number, drawn in enumerate(rounds):
        for one, other in zip(drawn, draw_in_the_program(number), strict=True):
            assert torch.equal(one, other), f"round {number}"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_request_that_ends_early_leaves_nothing_behind() -> None:
    torch.manual_seed(3)
    wanted = torch.randn(4)
    pipeline = drawing.everywhere()
    for seed in SEEDS:
        bare("everywhere", seed)
    torch.manual_seed(3)
    with DiffusionEngine(pipeline=pipeline) as engine:
        handle = engine.submit(OmniDiffusionRequest(**{**REQUEST, "num_inference_steps": 500}, seed=1))
        next(event for event in handle.events(timeout=60) if event.kind == "step")
        handle.abort()
        assert handle.result(60).finish_reason == "aborted"
        assert max(gaps(engine, "everywhere")) <= TOLERANCE
    assert torch.equal(torch.randn(4), wanted)


def test_calls_of_the_worker_are_the_programs_own() -> None:
    torch.manual_seed(4)
    wanted = torch.randn(4)
    with DiffusionEngine(OmniDiffusionConfig(), pipeline=drawing.everywhere()) as engine:
        engine.step([request(1)])
        torch.manual_seed(4)
        [drawn] = engine.collective_rpc(lambda worker: torch.randn(4))
    assert torch.equal(drawn, wanted)
