"""Torch's thread-local state belongs to a task, whatever other task runs between its steps."""

from __future__ import annotations

import functools
from typing import Any

import greenlet
import pytest
import torch

from omni_core.worker.torch_state import TorchState

CPU = torch.device("cpu")


def state() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    )


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": functools.partial(torch.autocast, "cpu", dtype=torch.float16),
    "nothing": torch.enable_grad,
}


class Task:
    """Stops again and again inside a context, and notes what it sees each time."""

    def __init__(self, context: str, seed: int) -> None:
        self.context = context
        self.seen: list[tuple[Any, ...]] = []
        self.drawn: list[torch.Tensor] = []
        self.snapshot = TorchState(CPU)
        self.snapshot.seed(seed)
        self.greenlet = greenlet.greenlet(self.run)

    def run(self) -> None:
        with CONTEXTS[self.context]():
            for _ in range(3):
                self.seen.append(state())
                self.drawn.append(torch.randn(2))
                parent = self.greenlet.parent
                assert parent is not None
                parent.switch()
        self.seen.append(state())

    def resume(self) -> None:
        outside = TorchState(CPU)
        self.snapshot.restore()
        self.greenlet.switch()
        self.snapshot = TorchState(CPU)
        outside.restore()


@pytest.mark.parametrize("first", sorted(CONTEXTS))
@pytest.mark.parametrize("second", sorted(CONTEXTS))
def test_two_tasks_do_not_see_each_other(first: str, second: str) -> None:
    before, random = state(), torch.get_rng_state()
    tasks = [Task(first, 1), Task(second, 2)]
    for order in ((0, 1), (1, 0), (0, 1), (1, 0)):
        for index in order:
            tasks[index].resume()
            assert state() == before
            assert torch.equal(torch.get_rng_state(), random)
    for task, seed in zip(tasks, (1, 2), strict=True):
        with CONTEXTS[task.context]():
            wanted = state()
        assert task.seen == [wanted, wanted, wanted, before]
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(torch.stack(task.drawn), torch.stack([torch.randn(2, generator=generator) for _ in "abc"]))
        assert task.greenlet.dead
