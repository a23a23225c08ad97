from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_core.testing.left_behind import CHANGES
from omni_core.worker.task.process_state import ProcessState, install_setters

DRAWS: dict[str, Any] = {
    "random": random.random,
    "gauss": lambda: random.gauss(0, 1),
    "numpy": lambda: float(np.random.rand()),
    "numpy normal": lambda: float(np.random.randn()),
    "seed": lambda: random.seed(1),
    "numpy seed": lambda: np.random.seed(1),
}


def draw(state: ProcessState, names: list[str]) -> list[Any]:
    state.put_in()
    try:
        return [DRAWS[name]() for name in names]
    finally:
        state.take_out()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.sampled_from(sorted(DRAWS)), max_size=4)), max_size=12))
def test_each_task_draws_what_it_would_draw_alone(turns: list[tuple[int, list[str]]]) -> None:
    states = [ProcessState(seed, owns_process=True) for seed in range(3)]
    random.seed(99)
    np.random.seed(99)
    got: list[list[Any]] = [[], [], []]
    for task, names in turns:
        got[task] += draw(states[task], names)
    assert (random.random(), np.random.rand()) == (random.Random(99).random(), np.random.RandomState(99).rand())
    for task in range(3):
        random.seed(task)
        np.random.seed(task)
        names = [name for one, some in turns if one == task for name in some]
        assert got[task] == [DRAWS[name]() for name in names]


def test_a_generator_of_another_kind_ends_with_the_turn() -> None:
    state = ProcessState(1, owns_process=True)
    before = np.random.get_bit_generator()
    state.put_in()
    np.random.set_bit_generator(np.random.PCG64(1))
    state.take_out()
    assert np.random.get_bit_generator() is before
    draw(state, ["numpy", "numpy normal"])
    assert np.random.get_bit_generator() is before


def test_a_normal_number_that_somebody_has_left_is_no_tasks() -> None:
    np.random.seed(3)
    np.random.randn()  # makes two
    first = draw(ProcessState(1, owns_process=True), ["numpy normal"])
    np.random.seed(1)
    assert first == [np.random.randn()]


def test_what_another_thread_sets_in_the_users_process_is_left_alone() -> None:
    install_setters()
    state = ProcessState(1, owns_process=False)
    state.put_in()
    thread = threading.Thread(target=torch.set_default_dtype, args=(torch.float64,))
    thread.start()
    thread.join()
    try:
        assert not state.is_changed
        state.take_out()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_generators_of_the_users_process_are_left_alone() -> None:
    random.seed(5)
    draw(ProcessState(1, owns_process=False), ["random"])
    twin = random.Random(5)
    twin.random()
    assert random.random() == twin.random()


IN_OWN_PROCESS = (
    "recursion limit",
    "garbage collection",
    "warnings as errors",
    "working directory",
    "logging",
    "socket timeout",
)


@pytest.mark.parametrize("what", ["default dtype", "matmul precision", "deterministic algorithms", *IN_OWN_PROCESS])
def test_what_a_task_changes_is_its_own(what: str) -> None:
    install_setters()
    owns_process = what in IN_OWN_PROCESS
    state, other = ProcessState(1, owns_process), ProcessState(2, owns_process)
    before = state._read()
    assert state.mode is None
    state.put_in()
    CHANGES[what]()
    changed = state._read()
    state.take_out()
    assert changed != before
    assert state._read() == before
    other.put_in()
    assert other._read() == before
    other.take_out()
    assert (state.mode, other.mode) == (changed, None)
    state.put_in()
    assert state._read() == changed
    state.take_out()
    assert torch.get_default_dtype() == torch.float32
