"""Ranks that share a forward on GPUs, over NCCL: what no CPU can do. Skipped with a reason where there are too few."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from omni_core.config import OmniDiffusionConfig
from omni_core.errors import ConfigError, ExecutorError
from omni_core.worker.parallel.rank_group import RankGroup
from omni_core.worker.worker import DiffusionWorker
from small_pipelines import CASES
from worker.rank_processes import RankProcesses
from worker.test_row_parallel import request

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2, reason=f"needs 2 CUDA devices, and this machine has {torch.cuda.device_count()}"
    ),
]


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    with RankProcesses(device="cuda") as processes:
        yield processes


def run(group: RankGroup, name: str, options: dict[str, Any]) -> list[Any]:
    """Run two requests at once, and return their pictures or videos."""
    config = OmniDiffusionConfig(device=f"cuda:{group.rank}", **options)
    worker = DiffusionWorker(config, rank=group.rank, pipeline=CASES[name].build(), group=group)
    outputs = worker.execute_model([request(name, number) for number in (1, 2)])
    worker.close()
    return [np.asarray(output.raise_for_error().output[CASES[name].output]) for output in outputs]


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("flux", {"ulysses_degree": 2, "dtype": "float32"}, 1e-3),
        ("wan", {"ulysses_degree": 2, "dtype": "float32"}, 1e-3),
        ("flux", {"ulysses_degree": 2, "dtype": "bfloat16"}, 0.1),
        ("flux", {"ring_degree": 2, "dtype": "bfloat16"}, 0.1),
        ("flux", {"tensor_parallel_size": 2, "dtype": "float32"}, 1e-3),
        ("flux", {"tensor_parallel_size": 2, "dtype": "bfloat16"}, 0.1),
    ],
)
def test_two_gpus_give_what_one_gives(
    ranks: RankProcesses, name: str, options: dict[str, Any], tolerance: float
) -> None:
    expected = run(RankGroup.alone(), name, {"dtype": options["dtype"]})
    for got in ranks.run(run, name, options):
        for one, right in zip(got, expected, strict=True):
            assert np.abs(one.astype(np.float64) - right.astype(np.float64)).max() <= tolerance


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ring_degree": 2, "dtype": "float32"}, "needs dtype"),
        ({"ring_degree": 2, "dtype": "bfloat16", "attention_backend": "native"}, "attention_backend = 'native'"),
    ],
)
def test_what_ring_attention_cannot_do_is_refused(ranks: RankProcesses, options: dict[str, Any], reason: str) -> None:
    def refused(group: RankGroup) -> str:
        with pytest.raises(ConfigError) as error:
            run(group, "flux", options)
        return str(error.value)

    for message in ranks.run(refused):
        assert reason in message


def test_weights_that_are_shared_cannot_move_to_host_memory(ranks: RankProcesses) -> None:
    def sleep(group: RankGroup) -> str:
        config = OmniDiffusionConfig(device=f"cuda:{group.rank}", dtype="bfloat16", tensor_parallel_size=2)
        worker = DiffusionWorker(config, rank=group.rank, pipeline=CASES["flux"].build(), group=group)
        with pytest.raises(ExecutorError) as error:
            worker.sleep(level=1)
        worker.close()
        return str(error.value)

    for message in ranks.run(sleep):
        assert "Use level=2" in message
