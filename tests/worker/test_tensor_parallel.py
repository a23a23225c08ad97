"""Ranks that share the weights of a model. diffusers lets GPUs alone do it; here it is talked into doing it on CPUs."""

from __future__ import annotations

from typing import Any

from diffusers.hooks import tensor_parallel as diffusers_tensor_parallel

from omni_core.config import OmniDiffusionConfig
from omni_core.worker import worker as worker_module
from omni_core.worker.parallel.rank_group import RankGroup
from omni_core.worker.worker import DiffusionWorker
from small_pipelines import CASES
from worker.rank_processes import RankProcesses
from worker.test_row_parallel import assert_close, request


def run(group: RankGroup, **options: Any) -> tuple[list[Any], int]:
    """Run two requests at once; also tell how many rows of its first weight matrix this rank holds."""
    worker_module.refuse_impossible = lambda config, device: None  # type: ignore[assignment]
    diffusers_tensor_parallel._SUPPORTED_TP_DEVICES = ("cpu",)
    config = OmniDiffusionConfig(**options)
    worker = DiffusionWorker(config, rank=group.rank, pipeline=CASES["flux"].build(), group=group)
    weight = worker.pipeline.transformer.transformer_blocks[0].attn.to_q.weight
    held = getattr(weight, "_local_tensor", weight).shape[0]
    outputs = worker.execute_model([request("flux", number) for number in (1, 2)])
    worker.close()
    return [output.raise_for_error().output["images"] for output in outputs], held


def test_two_ranks_hold_half_of_the_weights_and_give_what_one_gives() -> None:
    with RankProcesses(1) as one:
        [(expected, whole)] = one.run(run)
    with RankProcesses(2) as two:
        for got, held in two.run(lambda group: run(group, tensor_parallel_size=2)):
            assert_close(got, expected)
            assert held == whole // 2
