"""Two ranks, as real processes, give what one rank gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omni_core.config import OmniDiffusionConfig
from omni_core.errors import ConfigError, RankGroupError
from omni_core.outputs import OmniRequestOutput, SchedulerOutput, StackingStats
from omni_core.request import OmniDiffusionRequest
from omni_core.worker.parallel.batch_parallel import BatchParallel
from omni_core.worker.parallel.rank_group import RankGroup
from omni_core.worker.worker import DiffusionWorker
from small_pipelines import CASES
from worker.rank_processes import RankProcesses
from worker.test_stacking import Toy


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    with RankProcesses() as processes:
        yield processes


# --- single calls ----------------------------------------------------------------------------------------------


def run_calls(
    group: RankGroup, compute: Callable[..., Any], rows: int, times: int = 3, **kwargs: Any
) -> tuple[list[list[int]], list[Any], list[bool], dict[str, str]]:
    """Make a call several times: the batches of the module in each, what came of it, whether it is right."""
    module, stats = Toy(compute), StackingStats()
    parallel = BatchParallel(group, stats)
    generator = torch.Generator().manual_seed(0)
    batches, results, right = [], [], []
    for _ in range(times):
        argument = torch.rand(rows, 6, generator=generator)
        module.batches.clear()
        with torch.no_grad():
            torch.manual_seed(1)
            try:
                result = parallel.run(module, (argument.clone(),), kwargs)
            except Exception as error:
                result = error
            state = torch.get_rng_state()
            batches.append(list(module.batches))
            torch.manual_seed(1)
            if not isinstance(result, Exception):
                alone = compute(argument, **kwargs)
                right.append(result.shape == alone.shape and torch.allclose(result, alone, atol=1e-5))
                right[-1] = right[-1] and torch.equal(state, torch.get_rng_state())
        results.append(f"{type(result).__name__}: {result}" if isinstance(result, Exception) else None)
    return batches, results, right, stats.refused


@pytest.mark.parametrize(("rows", "parts"), [(2, (1, 1)), (3, (2, 1)), (8, (4, 4)), (9, (5, 4))])
def test_rows_are_split_after_one_check(ranks: RankProcesses, rows: int, parts: tuple[int, int]) -> None:
    for part, (batches, _, right, refused) in zip(parts, ranks.run(run_calls, lambda x: x * 2, rows), strict=True):
        assert batches == [[rows, part], [part], [part]]
        assert right == [True] * 3
        assert refused == {}


def test_fewer_rows_than_ranks_run_whole(ranks: RankProcesses) -> None:
    for batches, _, right, refused in ranks.run(run_calls, lambda x: x * 2, 1):
        assert batches == [[1]] * 3
        assert right == [True] * 3
        assert refused == {}


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda x: x - x.mean(0, keepdim=True), "differs by"),
        (lambda x: torch.cat([part * (n + 1) for n, part in enumerate(x.chunk(3))]), "differs by"),
        (lambda x: x.mean(), "without rows"),
        (lambda x: torch.ones(7), "without rows"),
        (lambda x: x[:, : len(x)], "do not fit together"),
        (lambda x: x + torch.rand(x.shape), "random numbers"),
        (lambda x: x.add_(1), "changes its arguments"),
        (lambda x: x if len(x) == 5 else x[99], "IndexError"),
    ],
)
def test_what_cannot_be_split_runs_whole_and_is_right(ranks: RankProcesses, compute: Any, reason: str) -> None:
    for batches, _, right, refused in ranks.run(run_calls, compute, 5):
        assert batches[1:] == [[5], [5]]
        assert right == [True] * 3
        [(name, found)] = refused.items()
        assert name == "Toy[(5, 6)] over ranks"
        assert found.startswith("rows not split: ")
        assert reason in found


def test_a_generator_among_the_arguments_is_drawn_from_once(ranks: RankProcesses) -> None:
    def draw(group: RankGroup) -> Any:
        generator = torch.Generator().manual_seed(5)
        module = Toy(lambda x, generator: x + torch.rand(x.shape, generator=generator))
        stats = StackingStats()
        with torch.no_grad():
            for _ in range(2):
                result = BatchParallel(group, stats).run(module, (torch.zeros(4, 3),), {"generator": generator})
        expected = torch.Generator().manual_seed(5)
        torch.rand(4, 3, generator=expected)
        return torch.equal(result, torch.rand(4, 3, generator=expected)), list(stats.refused.values())

    for is_right, refused in ranks.run(draw):
        assert is_right
        assert refused == ["rows not split: it draws random numbers"]


def test_an_error_of_the_call_itself_reaches_all(ranks: RankProcesses) -> None:
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")

    for _, results, _, refused in ranks.run(run_calls, fails, 4, 2):
        assert results == ["ValueError: no"] * 2
        assert refused == {}


def fails_on(group: RankGroup, rank: int, error: Exception, at: int) -> tuple[list[Any], list[bool], list[list[int]]]:
    """Four calls of which the forward of number `at` fails on one rank."""
    count = 0

    def compute(x: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == at and group.rank == rank:
            raise error
        return x * 2

    module, stats = Toy(compute), StackingStats()
    parallel = BatchParallel(group, stats)
    results: list[Any] = []
    right = []
    for number in range(4):
        argument = torch.full((4, 2), float(number))
        try:
            with torch.no_grad():
                right.append(torch.equal(parallel.run(module, (argument,), {}), argument * 2))
            results.append(None)
        except Exception as raised:
            results.append((type(raised).__name__, str(raised), str(raised.__cause__)))
    return results, right, list(stats.refused.values())


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_rank_reaches_all_and_the_next_call_works(ranks: RankProcesses, rank: int) -> None:
    # In the forward that runs the call whole: it is the call's own error.
    found = ranks.run(fails_on, rank, KeyError("odd"), 1)
    for number, (results, right, refused) in enumerate(found):
        assert results[0][:2] == ("KeyError", "'odd'")
        assert results[1:] == [None] * 3
        assert right == [True] * 3
        assert refused == []
        if number != rank:
            assert f"on rank {rank} of the replica" in results[0][2]
            assert "raise error" in results[0][2]


@pytest.mark.parametrize("at", [2, 3])
def test_an_error_on_one_rank_in_a_split_forward_is_a_verdict(ranks: RankProcesses, at: int) -> None:
    for results, right, refused in ranks.run(fails_on, 1, ValueError("odd"), at):
        assert results == [None] * 4
        assert right == [True] * 4
        assert refused == ["rows not split: ValueError: odd"]


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("no")


def test_an_error_that_does_not_pickle(ranks: RankProcesses) -> None:
    def run(group: RankGroup) -> Any:
        return fails_on(group, 1, Unpicklable("odd"), 1)

    first, second = ranks.run(run)
    assert first[0][0][:2] == ("RuntimeError", "Unpicklable: odd")
    assert second[0][0][:2] == ("Unpicklable", "odd")
    assert first[1] == second[1] == [True] * 3


@pytest.mark.parametrize(("at", "failing"), [(1, 0), (2, None), (3, 1)])
def test_memory_that_runs_out_on_one_rank_is_no_verdict(ranks: RankProcesses, at: int, failing: int | None) -> None:
    for results, right, refused in ranks.run(fails_on, 0, torch.OutOfMemoryError("full"), at):
        assert [number for number, result in enumerate(results) if result is not None] == (
            [] if failing is None else [failing]
        )
        assert all(result is None or result[0] == "OutOfMemoryError" for result in results)
        assert all(right)
        assert refused == []


def test_a_call_that_records_gradients_runs_whole(ranks: RankProcesses) -> None:
    def run(group: RankGroup) -> Any:
        module = Toy(lambda x: x * weight)
        weight = torch.ones(1, requires_grad=True)
        BatchParallel(group, StackingStats()).run(module, (torch.rand(4, 2),), {}).sum().backward()
        return module.batches, weight.grad is not None

    assert ranks.run(run) == [([4], True)] * 2


# --- whole requests --------------------------------------------------------------------------------------------


class Session:
    """A worker on each rank, driven as an executor does."""

    def __init__(self, group: RankGroup, name: str, **options: Any) -> None:
        config = OmniDiffusionConfig(cfg_parallel_size=group.world_size, **options)
        self.worker = DiffusionWorker(config, rank=group.rank, pipeline=CASES[name].build(), group=group)
        self.outputs: dict[str, OmniRequestOutput] = {}
        self.steps: dict[str, int] = {}
        self.waves = 0

    def step(self, *waves: tuple[str, ...], new: Any = (), ended: Any = None) -> None:
        done = self.worker.execute_step(SchedulerOutput(list(new), ended or {}, list(waves)))
        self.waves += len(done.forwards)
        self.steps.update({progress.request_id: progress.step for progress in done.progress})
        self.outputs.update({output.request_id: output for output in done.finished})

    def finish(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        """Run all to their end; the first one gets ahead of the others."""
        ids = tuple(request.request_id for request in requests)
        self.step((ids[0],), ids, ids, new=requests)
        while len(self.outputs) < len(requests):
            self.step(*[ids] * 4)
        return [self.outputs[request_id] for request_id in ids]


def request(name: str, number: int, **fields: Any) -> OmniDiffusionRequest:
    case = CASES[name]
    given: dict[str, Any] = {"seed": number, "request_id": f"r{number}", **case.fields, **fields}
    if case.exact_output_type is not None:
        given["output_type"] = case.exact_output_type
    return OmniDiffusionRequest(**given, extra_args=case.extra_args)


def run_requests(group: RankGroup, name: str, requests: list[OmniDiffusionRequest]) -> tuple[list[Any], dict[str, str]]:
    session = Session(group, name)
    outputs = session.finish(requests)
    stats = session.worker.stats()
    session.worker.close()
    return [output.raise_for_error().output[CASES[name].output] for output in outputs], stats.refused


def assert_close(results: list[Any], expected: list[Any]) -> None:
    for result, right in zip(results, expected, strict=True):
        assert np.abs(np.asarray(result) - np.asarray(right)).max() <= 1e-4


# Which of them must be split; of a pipeline with one row for each picture, the one request with two pictures.
SPLIT = [
    "dit",
    "stable_diffusion",
    "stable_diffusion_xl",
    "stable_diffusion_3",
    "wan",
    "flux",
    "stable_diffusion_controlnet",
    "pixart_sigma",
    "animate_diff",
    "z_image",
    "qwen_image",
]


# Those that differ most in their arguments; the rest by night.
BY_DAY = ("dit", "stable_diffusion_xl", "flux", "z_image")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in BY_DAY else pytest.mark.nightly) for name in SPLIT]
)
def test_requests_give_what_one_rank_gives(ranks: RankProcesses, name: str) -> None:
    requests = [request(name, number) for number in range(3)]
    expected, _ = run_requests(RankGroup.alone(), name, requests)
    for results, refused in ranks.run(run_requests, name, requests):
        assert_close(results, expected)
        assert not [what for what, why in refused.items() if why.startswith("rows not split")], refused


@pytest.mark.parametrize("name", ["stable_diffusion_pag", "stable_diffusion_3_pag", "sana_pag"])
def test_perturbed_attention_is_refused_and_right(ranks: RankProcesses, name: str) -> None:
    requests = [request(name, number) for number in range(2)]
    expected, _ = run_requests(RankGroup.alone(), name, requests)
    for results, refused in ranks.run(run_requests, name, requests):
        assert_close(results, expected)
        assert [why for why in refused.values() if why.startswith("rows not split: the pipeline puts attention")]


def test_guided_and_unguided_requests_of_several_sizes_together(ranks: RankProcesses) -> None:
    name = "stable_diffusion_3"
    requests = [
        request(name, 1, num_inference_steps=5),
        request(name, 2, guidance_scale=1.0),
        request(name, 3, guidance_scale=1.0, num_outputs_per_prompt=3),
        request(name, 4, height=16, num_inference_steps=7),
        request(name, 5, guidance_scale=1.0, num_inference_steps=4),
    ]
    expected, _ = run_requests(RankGroup.alone(), name, requests)
    for results, _ in ranks.run(run_requests, name, requests):
        assert_close(results, expected)


def test_requests_run_whole_by_execute_model(ranks: RankProcesses) -> None:
    name = "dit"
    requests = [request(name, number) for number in range(2)]
    expected, _ = run_requests(RankGroup.alone(), name, requests)

    def run(group: RankGroup) -> list[Any]:
        outputs = Session(group, name).worker.execute_model(requests)
        return [output.raise_for_error().output["images"] for output in outputs]

    for results in ranks.run(run):
        assert_close(results, expected)


def test_an_abort_takes_effect_at_the_same_step(ranks: RankProcesses) -> None:
    name = "stable_diffusion_3"

    def run(group: RankGroup) -> Any:
        session = Session(group, name)
        session.step(
            ("r1", "r2"), ("r1", "r2"), new=[request(name, number, num_inference_steps=9) for number in (1, 2)]
        )
        waves = session.waves
        session.step(*[("r2",)] * 8, ended={"r1": "aborted"})
        first = session.outputs["r1"]
        waves_before_it_was_told = session.waves - waves
        session.step(*[("r2",)] * 8)
        second = session.outputs["r2"]
        return (
            waves_before_it_was_told,
            first.finish_reason,
            first.metrics.num_steps,
            second.finish_reason,
            second.output["images"],
        )

    [expected], _ = run_requests(RankGroup.alone(), name, [request(name, 2, num_inference_steps=9)])
    for waves, reason, steps, other, images in ranks.run(run):
        assert (waves, reason, steps, other) == (0, "aborted", 2, "finished")
        assert_close([images], [expected])


def test_a_step_ends_on_all_ranks_in_the_wave_in_which_a_request_ends(ranks: RankProcesses) -> None:
    name = "dit"

    def run(group: RankGroup) -> Any:
        session = Session(group, name)
        both = ("r1", "r2")
        session.step(
            *[both] * 8, new=[request(name, 1, num_inference_steps=30), request(name, 2, num_inference_steps=3)]
        )
        waves, ended = session.waves, list(session.outputs)
        session.step(*[both] * 8)
        return waves, ended, session.waves - waves, list(session.outputs)

    assert ranks.run(run) == [(3, ["r2"], 8, ["r2"])] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_an_interrupt_ends_the_step_at_the_same_wave(ranks: RankProcesses, rank: int) -> None:
    name = "stable_diffusion_3"

    def run(group: RankGroup) -> Any:
        session = Session(group, name)
        calls = 0

        def interrupt(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 4 and group.rank == rank:  # the first call is two: whole, then split
                session.worker.interrupt()

        session.worker.pipeline.transformer.register_forward_hook(interrupt)
        session.step(*[("r1",)] * 8, new=[request(name, 1, num_inference_steps=12)])
        waves = session.waves
        session.step(*[("r1",)] * 2)
        return waves, session.waves - waves

    # Rank 0 decides; that another one heard of it first changes nothing.
    assert ranks.run(run) == [(3, 2) if rank == 0 else (8, 2)] * 2


def fail_in(group: RankGroup, part: str, rank: int) -> Any:
    """Two requests, with something that fails in the first one on one rank; then a third one."""
    name = "stable_diffusion_3"
    session = Session(group, name)
    pipeline = session.worker.pipeline
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1 and group.rank == rank:
            raise ValueError("a fault of this rank")

    if part == "vae":
        decode = pipeline.vae.decode

        def failing(*args: Any, **kwargs: Any) -> Any:
            fail()
            return decode(*args, **kwargs)

        pipeline.vae.decode = failing
    else:
        getattr(pipeline, part).register_forward_pre_hook(fail)
    outputs = session.finish([request(name, 1), request(name, 2)])
    session.outputs.clear()
    outputs += session.finish([request(name, 3)])
    return [
        (output.finish_reason, output.output.get("images"), output.error.message if output.error else None)
        for output in outputs
    ]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_a_request_that_fails_on_one_rank_fails_on_all_and_others_go_on(
    ranks: RankProcesses, part: str, rank: int
) -> None:
    name = "stable_diffusion_3"
    expected, _ = run_requests(RankGroup.alone(), name, [request(name, 2), request(name, 3)])
    for found in ranks.run(fail_in, part, rank):
        assert [reason for reason, _, _ in found] == ["error", "finished", "finished"]
        assert "ValueError" in found[0][2]
        assert "a fault of this rank" in found[0][2]
        assert_close([images for _, images, _ in found[1:]], expected)


def test_a_request_at_different_places_is_an_error_and_no_hang() -> None:
    name = "stable_diffusion_3"

    def run(group: RankGroup) -> str:
        session = Session(group, name)
        with pytest.raises(RankGroupError) as error:
            session.finish([request(name, 1, guidance_scale=4.0 if group.rank == 0 else 1.0)])
        return str(error.value)

    with RankProcesses() as processes:
        for message in processes.run(run):
            assert "'r1'" in message
            assert "on rank 0 it waits for a call of SD3Transformer2DModel with 2 rows" in message
            assert "on rank 1 it waits for a call of SD3Transformer2DModel with 1 rows" in message


@pytest.mark.parametrize("how", ["killed", "raised"])
def test_a_rank_lost_in_a_step_ends_it_on_the_others(how: str, wait_until: Callable[..., None]) -> None:
    name = "stable_diffusion_3"

    def run(group: RankGroup, path: str) -> str:
        session = Session(group, name)
        calls = 0

        def lost(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 5 and group.rank == 1:
                Path(path).touch()
                if how == "raised":
                    raise KeyboardInterrupt
                while True:
                    pass

        session.worker.pipeline.transformer.register_forward_pre_hook(lost)
        try:
            session.finish([request(name, 1, num_inference_steps=20)])
        except RankGroupError as error:
            return str(error)
        except KeyboardInterrupt:
            return "raised"
        return "nothing"

    with RankProcesses(timeout_s=60.0) as processes:
        path = Path(processes.folder) / "reached"
        processes.send(run, str(path))
        if how == "killed":
            wait_until(path.exists, 60)
            processes.kill(1)
        assert "Rank 0 of 2 cannot reach the others" in processes.result(0, 30)


def test_the_number_of_ranks_must_be_what_the_configuration_says() -> None:
    with pytest.raises(ConfigError, match="cfg_parallel_size = 2, .* make 2 ranks, but this worker is one of 1"):
        DiffusionWorker(OmniDiffusionConfig(cfg_parallel_size=2), pipeline=CASES["dit"].build())
