"""Torch's thread-local state belongs to a task, whatever other task runs between its steps, and in every thread."""

from __future__ import annotations

import contextvars
import functools
import gc
import queue
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import greenlet
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from omni_core.worker.pipeline.module_edits import EditableParts
from omni_core.worker.task.side_thread import SideThread, take_over
from omni_core.worker.task.state import StateSwitch, TaskState

CPU = torch.device("cpu")
KINDS = ("cpu", "cuda")


def state() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(kind) for kind in KINDS),
        *(torch.get_autocast_dtype(kind) for kind in KINDS),
        torch.is_autocast_cache_enabled(),
        str(torch.get_default_device()),
        torch.empty(0).device.type,
        torch.empty(0).requires_grad,
        torch.ones(1, requires_grad=True).mul(2).requires_grad,
        [type(torch._C._get_function_stack_at(index)) for index in range(torch._C._len_torch_function_stack())],
        [type(torch._C._get_dispatch_stack_at(index)) for index in range(torch._C._len_torch_dispatch_stack())],
    )


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def autocast_dtype() -> Iterator[None]:
    """What `torch.autocast("cpu")` without a dtype will take."""
    before = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        yield
    finally:
        torch.set_autocast_dtype("cpu", before)


@contextmanager
def autocast_of_cuda() -> Iterator[None]:
    """As where there is a GPU."""
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


@contextmanager
def grad_within_inference() -> Iterator[None]:
    with torch.inference_mode(), torch.enable_grad():
        yield


CONTEXTS: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad_within_inference": grad_within_inference,
    "autocast": functools.partial(torch.autocast, "cpu", dtype=torch.float16),
    "autocast_without_cache": functools.partial(torch.autocast, "cpu", cache_enabled=False),
    "autocast_of_cuda": autocast_of_cuda,
    "autocast_dtype": autocast_dtype,
    "device": functools.partial(torch.device, "meta"),
    "function_mode": Functions,
    "dispatch_mode": Dispatches,
    "nothing": torch.enable_grad,
}


def wanted(*contexts: str) -> tuple[Any, ...]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(CONTEXTS[context]())
        return state()


class Task:
    """Stops again and again inside a context, and notes what it sees each time."""

    def __init__(self, context: str, seed: int) -> None:
        self.context = context
        self.seen: list[tuple[Any, ...]] = []
        self.drawn: list[torch.Tensor] = []
        self.state = TaskState(CPU, seed, [], EditableParts([]))
        self.greenlet = greenlet.greenlet(self.run)

    def run(self) -> None:
        with CONTEXTS[self.context]():
            for _ in range(3):
                self.seen.append(state())
                self.drawn.append(torch.randn(2, device="cpu"))
                parent = self.greenlet.parent
                assert parent is not None
                parent.switch()
        self.seen.append(state())


@pytest.mark.parametrize("leaves", [True, False], ids=["leaving", "from_task_to_task"])
@pytest.mark.parametrize("outside", ["nothing", "inference_mode", "device", "dispatch_mode"])
@pytest.mark.parametrize("first", sorted(CONTEXTS))
@pytest.mark.parametrize("second", ["nothing", "inference_mode", "autocast"])
def test_two_tasks_do_not_see_each_other(first: str, second: str, outside: str, leaves: bool) -> None:
    before, random = state(), torch.get_rng_state()
    switch = StateSwitch(CPU)
    with CONTEXTS[outside]():
        around = state()
        tasks = [Task(first, 1), Task(second, 2)]
        for order in ((0, 1), (1, 0), (0, 1), (1, 0)):
            for index in order:
                switch.enter(tasks[index].state)
                tasks[index].greenlet.switch()
                if leaves:
                    switch.leave()
                    assert state() == around
        switch.leave()
        assert state() == around
    assert state() == before
    assert torch.equal(torch.get_rng_state(), random)
    for task, seed in zip(tasks, (1, 2), strict=True):
        assert task.seen == [wanted(outside, task.context)] * 3 + [wanted(outside)]
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(torch.stack(task.drawn), torch.stack([torch.randn(2, generator=generator) for _ in "abc"]))
        assert task.greenlet.dead


@pytest.mark.parametrize("context", ["no_grad", "inference_mode"])
def test_a_state_that_is_dropped_changes_nothing(context: str) -> None:
    switch = StateSwitch(CPU)
    before = state()
    block = CONTEXTS[context]()
    dropped = TaskState(CPU, 1, [], EditableParts([]))
    switch.enter(dropped)
    block.__enter__()
    switch.leave()
    del dropped, switch
    gc.collect()
    assert state() == before


@pytest.mark.parametrize("context", sorted(CONTEXTS))
def test_the_side_thread_computes_in_the_state_of_its_caller(context: str) -> None:
    done: queue.SimpleQueue[None] = queue.SimpleQueue()
    with closing(SideThread(CPU, lambda: done.put(None))) as side:
        initial = side.submit(state, (), {}).result(20)
        with CONTEXTS[context]():
            here = state()
            there = side.submit(state, (), {}).result(20)

            def fail() -> None:
                raise ValueError

            error = side.submit(fail, (), {}).exception(20)
        assert there == here
        assert isinstance(error, ValueError)
        assert side.submit(state, (), {}).result(20) == initial == state()
        assert side._thread.submit(state).result(20) == state(), "something was left in the thread itself"
        for _ in range(4):
            done.get(timeout=20)


def test_context_variables_go_to_the_side_thread_and_back() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
    other: contextvars.ContextVar[str] = contextvars.ContextVar("other")

    def call() -> str:
        seen = variable.get()
        variable.set("from there")
        other.set("new")
        return seen

    with closing(SideThread(CPU, lambda: None)) as side:
        variable.set("from here")
        context = contextvars.copy_context()
        assert side.submit(context.run, (call,), {}).result(20) == "from here"
        take_over(context)
    assert variable.get() == "from there"
    assert other.get() == "new"
