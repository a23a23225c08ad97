"""Whatever draws from torch's default generators draws from the task's, as after `torch.manual_seed` in the program."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import greenlet
import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from omni_core.worker.pipeline.module_edits import EditableParts
from omni_core.worker.task.generators import TaskRandom
from omni_core.worker.task.random_draws import current_random, drawing_from, install_draws
from omni_core.worker.task.state import StateSwitch, TaskState

CPU = torch.device("cpu")
HALVES = torch.full((4, 4), 0.5)
RAMP = torch.arange(1024.0).view(1, 4, 16, 16)


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    install_draws()


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@torch.jit.script
def scripted(value: torch.Tensor) -> torch.Tensor:
    return value + torch.rand_like(value)


def gradient_of_dropout() -> torch.Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        value = HALVES.clone().requires_grad_()
        F.dropout(value, 0.5, True).sum().backward()
    assert value.grad is not None
    return value.grad


def lstm() -> torch.Tensor:
    with torch.inference_mode(False):
        result: torch.Tensor = torch.nn.LSTM(4, 4, 2, dropout=0.5).train()(HALVES[None])[0].detach()
    return result


OPERATORS: dict[str, Callable[[], torch.Tensor]] = {
    "rand": lambda: torch.rand(3),
    "rand_like": lambda: torch.rand_like(HALVES),
    "randn": lambda: torch.randn(3),
    "randn_out": lambda: torch.randn(3, out=torch.empty(3)),
    "randn_like": lambda: torch.randn_like(HALVES),
    "randn_bfloat16": lambda: torch.randn(3, dtype=torch.bfloat16),
    "randn_complex": lambda: torch.randn(3, dtype=torch.complex64),
    "randn_device": lambda: torch.randn(3, device="cpu"),
    "randint": lambda: torch.randint(0, 100, (5,)),
    "randint_like": lambda: torch.randint_like(HALVES, 100),
    "randperm": lambda: torch.randperm(9),
    "normal_": lambda: torch.empty(3).normal_(),
    "uniform_": lambda: torch.empty(3).uniform_(),
    "random_": lambda: torch.empty(3).random_(),
    "random_to": lambda: torch.empty(3).random_(4),
    "bernoulli_": lambda: torch.empty(9).bernoulli_(0.5),
    "bernoulli_tensor": lambda: torch.empty(4, 4).bernoulli_(HALVES),
    "exponential_": lambda: torch.empty(3).exponential_(),
    "geometric_": lambda: torch.empty(3).geometric_(0.5),
    "log_normal_": lambda: torch.empty(3).log_normal_(),
    "cauchy_": lambda: torch.empty(3).cauchy_(),
    "normal": lambda: torch.normal(HALVES, HALVES),
    "normal_float": lambda: torch.normal(0.0, HALVES),
    "normal_size": lambda: torch.normal(0.0, 1.0, (3,)),
    "bernoulli": lambda: torch.bernoulli(HALVES),
    "bernoulli_p": lambda: torch.bernoulli(HALVES, 0.3),
    "multinomial": lambda: torch.multinomial(HALVES, 2),
    "poisson": lambda: torch.poisson(HALVES),
    "binomial": lambda: torch.binomial(torch.full((4, 4), 10.0), HALVES),
    "gamma": lambda: torch._standard_gamma(HALVES),
    "dirichlet": lambda: torch.distributions.Dirichlet(HALVES).sample(),
    "dropout": lambda: F.dropout(HALVES, 0.5, True),
    "native_dropout": lambda: torch.native_dropout(HALVES, 0.5, True)[0],
    "alpha_dropout": lambda: F.alpha_dropout(HALVES, 0.5, True),
    "feature_dropout": lambda: F.dropout1d(HALVES, 0.5, True),
    "dropout_gradient": gradient_of_dropout,
    "attention_dropout": lambda: F.scaled_dot_product_attention(
        HALVES[None], HALVES[None], HALVES[None], dropout_p=0.3
    ),
    "rrelu": lambda: F.rrelu(-HALVES, training=True),
    "lstm": lstm,
    "init": lambda: torch.nn.init.trunc_normal_(torch.empty(5)),
    "gumbel_softmax": lambda: F.gumbel_softmax(HALVES),
    "fractional_max_pool": lambda: F.fractional_max_pool2d(RAMP, 2, output_size=7),
    "sobol": lambda: torch.quasirandom.SobolEngine(2, scramble=True).draw(3),
    "scripted": lambda: scripted(HALVES),
    "vmap": lambda: torch.func.vmap(lambda row: row + torch.rand(4), randomness="different")(HALVES),
    "by_name": lambda: torch.randn(3, generator=torch.default_generator),
}


def keep() -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        inside = torch.rand(2)
    return torch.cat([inside, torch.rand(2)])


def repeat() -> torch.Tensor:
    state = torch.get_rng_state()
    first = torch.rand(2)
    torch.set_rng_state(state)
    assert torch.equal(first, torch.rand(2))
    return first


def reseed() -> torch.Tensor:
    drawn = torch.rand(2)
    torch.cuda.manual_seed_all(4)
    generator = torch.manual_seed(torch.initial_seed() + 1)
    return torch.cat([drawn, torch.rand(2), torch.rand(2, generator=generator), torch.rand(2)])


FUNCTIONS: dict[str, Callable[[], torch.Tensor]] = {
    "fork_rng": keep,
    "get_and_set_state": repeat,
    "manual_seed": reseed,
}


def assert_as_in_the_program(draw: Callable[[], torch.Tensor]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = draw(), draw()
    assert not torch.equal(first, second) or draw in FUNCTIONS.values()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    with drawing_from(TaskRandom(3)):
        assert torch.equal(draw(), first)
        assert torch.equal(draw(), second)
    assert torch.equal(torch.get_rng_state(), state), "the program's own generator was disturbed"


@pytest.mark.parametrize("around", [nullcontext, torch.inference_mode, torch.no_grad, Passing])
@pytest.mark.parametrize("name", sorted({**OPERATORS, **FUNCTIONS}))
def test_all_that_draws(name: str, around: Callable[[], Any]) -> None:
    draw = {**OPERATORS, **FUNCTIONS}[name]
    with around():
        assert_as_in_the_program(draw)


def test_every_operator_with_a_generator_is_known() -> None:
    key = torch._C._dispatch_key_parse("TESTING_ONLY_GenericMode")
    names = [
        f"{schema.name}.{schema.overload_name}".rstrip(".")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("aten::") and any("Generator" in str(one.type) for one in schema.arguments)
    ]
    assert len(names) > 70
    for name in (*names, "aten::rand", "aten::randn", "aten::randint.low_out", "aten::native_dropout"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key), name
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::add.Tensor", key)


def test_seed_is_another_each_time() -> None:
    state = torch.get_rng_state()
    with drawing_from(TaskRandom(3)):
        seeds = {torch.seed() for _ in range(3)}
        assert torch.initial_seed() in seeds
    assert len(seeds) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_of_the_pipelines_own_is_left_to_it() -> None:
    with drawing_from(TaskRandom(3)):
        state = torch.get_rng_state()
        drawn = torch.randn(4, generator=torch.Generator().manual_seed(8))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn, torch.randn(4, generator=torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("first", ["task", "program"])
def test_a_compiled_module(first: str) -> None:
    def draw() -> torch.Tensor:
        result: torch.Tensor = compiled(HALVES)
        return result

    def forward(value: torch.Tensor) -> torch.Tensor:
        value = value + torch.randn_like(value) + torch.empty_like(value).uniform_()
        return F.dropout(value, 0.5, True) + torch.native_dropout(value, 0.5, True)[0] + torch.randperm(4)

    torch._dynamo.reset()
    compiled = torch.compile(forward, backend="aot_eager")
    with torch.no_grad():
        if first == "task":
            torch.manual_seed(99)
            state = torch.get_rng_state()
            with drawing_from(TaskRandom(3)):
                found = draw()
            assert torch.equal(torch.get_rng_state(), state)
            torch.manual_seed(3)
            assert torch.equal(found, draw())
        assert_as_in_the_program(draw)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_operators_of_higher_order_pass() -> None:
    query = torch.ones(1, 1, 16, 16).cumsum(-1)
    with torch.no_grad():
        expected = flex_attention(query, query, query)
        with drawing_from(TaskRandom(3)):
            assert torch.equal(flex_attention(query, query, query), expected)


def test_other_threads_draw_from_the_programs() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    drawn = []
    with drawing_from(TaskRandom(8)):
        thread = threading.Thread(target=lambda: drawn.append(torch.rand(2)))
        thread.start()
        thread.join(20)
    assert torch.equal(drawn[0], expected)
    assert current_random() is None


# --- tasks and the program by turns ------------------------------------------------------------------------------

NAMES = sorted({*OPERATORS, *FUNCTIONS} - {"lstm", "sobol", "vmap", "scripted"})


class _Task:
    """Draws what it is told to, in a greenlet; the model beside it draws with a generator state of its own."""

    def __init__(self, seed: int) -> None:
        self.state = TaskState(CPU, seed, [], EditableParts([]))
        self.expected = torch.Generator().manual_seed(seed).get_state()
        self.greenlet = greenlet.greenlet(self.run)
        self.greenlet.switch()

    def run(self) -> None:
        result: Any = None
        while True:
            parent = self.greenlet.parent
            assert parent is not None
            name = parent.switch(result)
            if name is None:
                return
            result = ({**OPERATORS, **FUNCTIONS}[name]).__call__()


class Turns(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.outside = torch.get_rng_state()
        torch.manual_seed(1)
        self.program = torch.get_rng_state()
        self.switch = StateSwitch(CPU)
        self.tasks: list[_Task] = []

    def draw_as(self, state: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what is drawn in the program from a state, and the state after."""
        self.switch.leave()
        kept = torch.get_rng_state()
        torch.set_rng_state(state)
        drawn = {**OPERATORS, **FUNCTIONS}[name]()
        after = torch.get_rng_state()
        torch.set_rng_state(kept)
        return drawn, after

    @rule(seed=st.integers(0, 2**63 - 1))
    @precondition(lambda self: len(self.tasks) < 4)
    def begin(self, seed: int) -> None:
        self.switch.leave()
        self.tasks.append(_Task(seed))

    @rule(data=st.data(), names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3))
    @precondition(lambda self: self.tasks)
    def draw_in_a_task(self, data: st.DataObject, names: list[str]) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        self.switch.enter(task.state)
        found = [task.greenlet.switch(name) for name in names]
        for name, drawn in zip(names, found, strict=True):
            expected, task.expected = self.draw_as(task.expected, name)
            assert torch.equal(drawn, expected), name

    @rule(name=st.sampled_from(NAMES))
    def draw_in_the_program(self, name: str) -> None:
        self.switch.leave()
        {**OPERATORS, **FUNCTIONS}[name]()
        kept = torch.get_rng_state()
        _, self.program = self.draw_as(self.program, name)
        assert torch.equal(kept, self.program)

    @rule(data=st.data())
    @precondition(lambda self: self.tasks)
    def end(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        self.tasks.remove(task)
        self.switch.enter(task.state)
        task.greenlet.switch(None)
        assert task.greenlet.dead

    @invariant()
    def the_program_goes_on(self) -> None:
        assert torch.equal(torch.default_generator.get_state(), self.program)

    def teardown(self) -> None:
        for task in self.tasks:
            self.switch.enter(task.state)
            task.greenlet.switch(None)
        self.switch.leave()
        torch.set_rng_state(self.outside)


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_the_default_generator_is_one() -> None:
    install_draws()
    assert torch.random.default_generator is torch.default_generator
    torch.manual_seed(3)
    first = torch.randn(3, generator=torch.random.default_generator)
    torch.manual_seed(3)
    assert torch.equal(torch.randn(3), first)
