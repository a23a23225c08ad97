"""Several ranks in a replica: they share the rows of each forward, and none is left waiting for another."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import multiproc_calls as calls
import numpy as np
import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.errors import RPCError, WorkerDiedError

FAMILIES: dict[str, dict[str, Any]] = {
    "class_conditional": {"extra_args": {"class_labels": [1]}, "guidance_scale": 4.0, "num_inference_steps": 6},
    "picture": {"prompt": "a red seven", "guidance_scale": 4.0, "num_inference_steps": 6},
    "unconditional": {"num_inference_steps": 6, "num_outputs_per_prompt": 3},
}


def requests(family: str) -> list[OmniDiffusionRequest]:
    fields = {"output_type": "np", **FAMILIES[family]}
    return [OmniDiffusionRequest(seed=seed, **fields) for seed in range(3)]


def config(family: str = "class_conditional", **fields: Any) -> OmniDiffusionConfig:
    fields = {"executor_class": "multiproc", "cfg_parallel_size": 2, **fields}
    return OmniDiffusionConfig(model=f"omni_core.testing.pipelines:{family}", **fields)


@pytest.fixture(scope="module")
def engine() -> Iterator[DiffusionEngine]:
    with DiffusionEngine(config(executor_options={"collective_grace_s": 4.0})) as made:
        yield made


def pids(engine: DiffusionEngine) -> list[int]:
    [found] = engine.executor.worker_pids()  # type: ignore[attr-defined]
    return list(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_give_what_one_process_gives(family: str) -> None:
    with DiffusionEngine(config(family, executor_class="inline", cfg_parallel_size=1)) as inline:
        expected = inline.step(requests(family))
    with DiffusionEngine(config(family)) as ranks:
        outputs = ranks.step(requests(family))
    for output, wanted in zip(outputs, expected, strict=True):
        assert np.abs(output.raise_for_error().output["images"] - wanted.output["images"]).max() <= 1e-4


def test_every_rank_of_every_replica_replies(engine: DiffusionEngine) -> None:
    assert engine.collective_rpc(lambda worker: (worker.replica, worker.rank)) == [(0, 0), (0, 1)]
    assert engine.collective_rpc(calls.pid, unique_reply_rank=1) == pids(engine)[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_takes_no_request_along(engine: DiffusionEngine, rank: int) -> None:
    expected = engine.step(requests("class_conditional"))
    before = pids(engine)
    long = [
        OmniDiffusionRequest(
            seed=1, num_inference_steps=200, output_type="np", extra_args={"class_labels": [1]}, guidance_scale=4.0
        )
    ]
    handles = engine.submit_all(long)
    next(event for event in handles[0].events(30) if event.kind == "step")
    os.kill(before[rank], signal.SIGKILL)
    assert handles[0].result(60).raise_for_error().metrics.num_retries == 1
    assert not set(before) & set(pids(engine)), "the other rank was not replaced"
    again = engine.step(requests("class_conditional"))
    # New ranks verify the first company by running its parts alone, where the old ones stacked: other numbers of rows.
    for output, wanted in zip(again, expected, strict=True):
        assert np.abs(output.raise_for_error().output["images"] - wanted.output["images"]).max() <= 1e-4


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_wait_for_one_that_raised_are_released(
    engine: DiffusionEngine, rank: int, wait_until: Callable[..., None]
) -> None:
    # By name: in vLLM-Omni an exception on a rank other than the replying one leaves the rest in a collective.
    before = pids(engine)
    began = time.monotonic()
    with pytest.raises(RPCError, match=f"rank {rank} does not come"):
        engine.collective_rpc(calls.meet_the_others, args=(rank,), unique_reply_rank=0)
    assert time.monotonic() - began < 3.0, "the caller waited for the ranks that wait"
    wait_until(lambda: not set(before) & set(pids(engine)) and len(pids(engine)) == 2, timeout=60)
    assert engine.step(requests("class_conditional"), timeout=60)[0].finish_reason == "finished"


def test_abort_is_at_the_same_step_on_all_ranks(engine: DiffusionEngine) -> None:
    handle = engine.submit(
        OmniDiffusionRequest(num_inference_steps=900, extra_args={"class_labels": [1]}, guidance_scale=4.0)
    )
    next(event for event in handle.events(30) if event.kind == "step")
    handle.abort()
    assert handle.result(30).finish_reason == "aborted"
    before = pids(engine)
    assert engine.step(requests("class_conditional"))[0].finish_reason == "finished"
    assert pids(engine) == before


def test_the_rank_that_died_is_named_though_it_had_replied(
    engine: DiffusionEngine, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    call = engine.executor.begin_rpc(calls.wait_on_rank, (0, str(tmp_path / "here")))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    assert engine.executor._replicas[0].workers[1].call(calls.pid).result(30)  # type: ignore[attr-defined]
    os.kill(pids(engine)[1], signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match=r"The worker 1 of replica 0.*was killed by SIGKILL") as told:
        call.result(30)
    assert told.value.rank == 1
    wait_until(lambda: engine.executor.is_ready(0), timeout=60)
