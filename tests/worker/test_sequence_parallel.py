"""Ranks that share the sequence of a forward (Ulysses), as real processes over gloo, give what one rank gives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from omni_core.config import OmniDiffusionConfig
from omni_core.errors import ConfigError, RankGroupError
from omni_core.outputs import OmniRequestOutput, SchedulerOutput
from omni_core.request import OmniDiffusionRequest
from omni_core.worker.parallel import forward_peers
from omni_core.worker.parallel.rank_group import RankGroup
from omni_core.worker.worker import DiffusionWorker
from small_pipelines import CASES
from worker.rank_processes import RankProcesses
from worker.test_row_parallel import assert_close, request


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    with RankProcesses() as processes:
        yield processes


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[RankProcesses]:
    with RankProcesses(4) as processes:
        yield processes


def make_worker(group: RankGroup, name: str, **options: Any) -> DiffusionWorker:
    if group.world_size == 1:
        options = {}
    return DiffusionWorker(OmniDiffusionConfig(**options), rank=group.rank, pipeline=CASES[name].build(), group=group)


def results(outputs: list[OmniRequestOutput], name: str) -> list[Any]:
    return [output.raise_for_error().output[CASES[name].output] for output in outputs]


def run_whole(group: RankGroup, name: str, requests: list[OmniDiffusionRequest], **options: Any) -> Any:
    """Run requests by `execute_model`; also tell what the last block of the transformer got to see."""
    worker = make_worker(group, name, **options)
    seen: list[tuple[int, ...]] = []
    blocks = getattr(worker.pipeline.transformer, "transformer_blocks", None) or worker.pipeline.transformer.blocks

    def look(_module: Any, args: Any, kwargs: Any) -> None:
        seen.append(tuple((args[0] if args else kwargs["hidden_states"]).shape[:2]))

    # Not the first: of some models, that is where the sequence is split.
    blocks[-1].register_forward_pre_hook(look, with_kwargs=True)
    outputs = worker.execute_model(requests)
    worker.close()
    return results(outputs, name), seen


def run_steps(group: RankGroup, name: str, requests: list[OmniDiffusionRequest], **options: Any) -> Any:
    """Run requests step by step, the first one ahead of the others. All but the first wave are stacked."""
    worker = make_worker(group, name, **options)
    ids = tuple(request.request_id for request in requests)
    outputs: dict[str, OmniRequestOutput] = {}
    most_rows = 0
    step = SchedulerOutput(new_requests=requests, waves=[ids[:1], ids, ids])
    while len(outputs) < len(requests):
        done = worker.execute_step(step)
        most_rows = max([most_rows, *(forward.rows for forward in done.forwards)])
        outputs.update({output.request_id: output for output in done.finished})
        step = SchedulerOutput(waves=[ids] * 4)
    stats = worker.stats()
    worker.close()
    return results([outputs[request_id] for request_id in ids], name), stats.verified, most_rows, stats.refused


def sized(name: str, *numbers: int, **fields: Any) -> list[OmniDiffusionRequest]:
    """Requests whose sequences two ranks can share."""
    return [request(name, number, **fields) for number in numbers]


# --- what comes out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flux", "wan", "wan_two_transformers"])
def test_a_request_gives_what_one_rank_gives_and_each_sees_half_of_the_sequence(
    ranks: RankProcesses, name: str
) -> None:
    requests = sized(name, 1)
    expected, whole = run_whole(RankGroup.alone(), name, requests)
    for got, seen in ranks.run(lambda group: run_whole(group, name, requests, ulysses_degree=2)):
        assert_close(got, expected)
        assert seen == [(rows, length // 2) for rows, length in whole]


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_requests_are_stacked_and_give_what_one_rank_gives(ranks: RankProcesses, name: str) -> None:
    requests = sized(name, 1, 2, 3)
    expected, *_ = run_steps(RankGroup.alone(), name, requests)
    for got, verified, most_rows, refused in ranks.run(
        lambda group: run_steps(group, name, requests, ulysses_degree=2)
    ):
        assert_close(got, expected)
        assert verified > 0
        assert most_rows >= 3
        assert refused == {}


def test_a_picture_of_another_size_beside(ranks: RankProcesses) -> None:
    requests = [*sized("flux", 1, 2), *sized("flux", 3, height=32, num_inference_steps=5)]
    expected, *_ = run_steps(RankGroup.alone(), "flux", requests)
    for got, *_ in ranks.run(lambda group: run_steps(group, "flux", requests, ulysses_degree=2)):
        assert_close(got, expected)


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_rows_and_sequence_are_both_split_on_four_ranks(four_ranks: RankProcesses, name: str) -> None:
    requests = sized(name, 1, 2)
    expected, *_ = run_steps(RankGroup.alone(), name, requests)
    options = {"cfg_parallel_size": 2, "ulysses_degree": 2}
    for got, verified, _, refused in four_ranks.run(lambda group: run_steps(group, name, requests, **options)):
        assert_close(got, expected)
        assert verified > 0
        assert refused == {}


def test_each_of_four_ranks_computes_its_quarter(four_ranks: RankProcesses) -> None:
    requests = sized("flux", 1, num_outputs_per_prompt=2)
    expected, whole = run_whole(RankGroup.alone(), "flux", requests)
    options = {"cfg_parallel_size": 2, "ulysses_degree": 2}
    for got, seen in four_ranks.run(lambda group: run_whole(group, "flux", requests, **options)):
        assert_close(got, expected)
        rows, length = whole[-1]
        assert seen[-1] == (rows // 2, length // 2)


def test_four_ranks_cannot_share_two_heads(four_ranks: RankProcesses) -> None:
    def run(group: RankGroup) -> str:
        with pytest.raises(ConfigError) as error:
            make_worker(group, "flux", ulysses_degree=4)
        return str(error.value)

    for message in four_ranks.run(run):
        assert "FluxTransformer2DModel has 2 attention heads, which 4 ranks cannot share evenly" in message


# --- what fails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpm", "stable_diffusion_3", "dance_diffusion"])
def test_a_model_without_a_plan_is_named(ranks: RankProcesses, name: str) -> None:
    def run(group: RankGroup) -> tuple[str, str]:
        with pytest.raises(ConfigError) as error:
            make_worker(group, name, ulysses_degree=2)
        pipeline = CASES[name].build()
        return str(error.value), type(getattr(pipeline, "transformer", None) or pipeline.unet).__name__

    for message, model in ranks.run(run):
        assert "ulysses_degree = 2" in message
        assert f"It has {model}" in message


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ring_degree": 2}, "ring_degree = 2 needs a GPU"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size = 2 needs a GPU"),
        ({"ulysses_degree": 2, "cache": "FirstBlockCacheConfig"}, "cache cannot be combined"),
        ({"ulysses_degree": 2, "attention_backend": "_native_math"}, "_native_math"),
        ({}, "make 1 ranks, but this worker is one of 2"),
        ({"cfg_parallel_size": 2, "ulysses_degree": 2}, "make 4 ranks, but this worker is one of 2"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    ranks: RankProcesses, options: dict[str, Any], reason: str
) -> None:
    def run(group: RankGroup) -> str:
        try:
            with pytest.raises(ConfigError) as error:
                make_worker(group, "flux", **options)
        finally:  # diffusers makes the backend of one model that of all
            _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
        return str(error.value)

    for message in ranks.run(run):
        assert reason in message


def test_processors_that_would_not_be_split_are_refused(ranks: RankProcesses) -> None:
    class Processor:
        def __call__(self, *_: Any, **__: Any) -> None:
            raise AssertionError

    def run(group: RankGroup) -> str:
        pipeline = CASES["flux"].build()
        pipeline.transformer.transformer_blocks[0].attn.processor = Processor()
        with pytest.raises(ConfigError) as error:
            DiffusionWorker(OmniDiffusionConfig(ulysses_degree=2), rank=group.rank, pipeline=pipeline, group=group)
        return str(error.value)

    for message in ranks.run(run):
        assert "the attention processor Processor of FluxTransformer2DModel" in message


def test_an_uneven_sequence_fails_alone_and_says_why(ranks: RankProcesses) -> None:
    uneven = request("flux", 1).model_copy(update={"extra_args": {"max_sequence_length": 15}})
    requests = [uneven, *sized("flux", 2, 3)]
    expected, *_ = run_steps(RankGroup.alone(), "flux", requests[1:])

    def run(group: RankGroup) -> Any:
        worker = make_worker(group, "flux", ulysses_degree=2)
        outputs = worker.execute_model(requests)
        assert outputs[0].error is not None
        again = worker.execute_model(requests[:1])
        assert again[0].error is not None
        return (
            outputs[0].error.message,
            results(outputs[1:], "flux"),
            results(worker.execute_model(requests[1:]), "flux"),
        )

    for message, got, later in ranks.run(run):
        assert "'r1'" in message
        assert "cannot split one of 15 tokens evenly" in message
        assert "multiple of 2" in message
        assert_close(got, expected)
        assert_close(later, expected)


def test_an_error_at_the_same_place_on_all_ranks_fails_the_request_alone(ranks: RankProcesses) -> None:
    requests = sized("flux", 1, 2)
    expected, *_ = run_steps(RankGroup.alone(), "flux", requests[1:])

    def run(group: RankGroup) -> Any:
        worker = make_worker(group, "flux", ulysses_degree=2)
        fail_in_the_middle(worker)
        [failed] = worker.execute_model(requests[:1])
        return failed.error, results(worker.execute_model(requests[1:]), "flux")

    for error, got in ranks.run(run):
        assert "a fault in the middle" in error.message
        assert_close(got, expected)


def fail_in_the_middle(worker: DiffusionWorker) -> None:
    """Let one forward fail, when the ranks have exchanged their heads once already."""
    blocks = worker.pipeline.transformer.single_transformer_blocks
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("a fault in the middle")

    blocks[0].register_forward_pre_hook(fail)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_alone_is_told_of_and_strands_nobody(rank: int) -> None:
    def run(group: RankGroup) -> tuple[str, float]:
        forward_peers.PATIENCE_S = 1.0
        worker = make_worker(group, "flux", ulysses_degree=2)
        worker.execute_model(sized("flux", 1))
        if group.rank == rank:
            fail_in_the_middle(worker)
        began = time.monotonic()
        with pytest.raises(RankGroupError) as error:
            worker.execute_model(sized("flux", 2))
        return str(error.value), time.monotonic() - began

    with RankProcesses(timeout_s=60.0) as processes:
        found = processes.run(run)
    message, _ = found[rank]
    assert "raised in it, and the others did not: ValueError: a fault in the middle" in message
    assert "in fail\n" in message, "the traceback is missing"
    for _, waited in found:
        assert waited < 30


def test_a_rank_that_is_killed_in_a_forward_strands_nobody() -> None:
    def run(group: RankGroup, ready: str) -> tuple[str, float]:
        worker = make_worker(group, "flux", ulysses_degree=2)

        def hang(*_: Any) -> None:
            if group.rank == 1:
                Path(ready).touch()
            while group.rank == 1:
                pass  # until it is killed

        worker.pipeline.transformer.single_transformer_blocks[0].register_forward_pre_hook(hang)
        began = time.monotonic()
        with pytest.raises(RankGroupError) as error:
            worker.execute_model(sized("flux", 1))
        return str(error.value), time.monotonic() - began

    with RankProcesses(timeout_s=60.0) as processes:
        ready = Path(processes.folder) / "ready"
        processes.send(run, str(ready))
        while not ready.exists():
            assert processes.processes[1].is_alive()
        processes.kill(1)
        message, waited = processes.result(0)
    assert "cannot reach the others" in message
    assert waited < 30
