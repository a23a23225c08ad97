"""Every scheduler of diffusers, counted, does what it does by itself; and so does every copy of it."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import greenlet
import pytest
import torch

from omni_core.worker.pipeline.counted_scheduler import count_steps
from omni_core.worker.pipeline.foreign_state import foreign_step
from omni_core.worker.pipeline.progress import TaskProgress

STEPS = 4
# One scheduler warns of a thousand numpy scalars each time that it is made.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
# What some need besides.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "AmusedScheduler": {"mask_token_id": 7},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
    "VQDiffusionScheduler": {"num_vec_classes": 9},
}


def _takes_a_sample(kind: type[Any]) -> bool:
    step = getattr(kind, "step", None)
    return inspect.isfunction(step) and {"sample"} <= set(inspect.signature(step).parameters)


SCHEDULERS = {
    name: kind
    for name in dir(diffusers)
    if name.endswith("Scheduler")
    and isinstance(kind := getattr(diffusers, name), type)
    and kind.__module__.startswith("diffusers.schedulers")  # not one whose library is missing
    and callable(getattr(kind, "set_timesteps", None))
    and _takes_a_sample(kind)
}

COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda scheduler: scheduler,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "from_config": lambda scheduler: type(scheduler).from_config(scheduler.config),
    "pickle": lambda scheduler: pickle.loads(pickle.dumps(scheduler)),
    "deepcopy of a copy": lambda scheduler: copy.deepcopy(copy.copy(scheduler)),
}


def make(name: str) -> Any:
    kind = SCHEDULERS[name]
    fewer = {"num_train_timesteps": 100} if "num_train_timesteps" in inspect.signature(kind).parameters else {}
    return kind(**fewer, **ARGUMENTS.get(name, {}))


def run(scheduler: Any, make_copy: Callable[[Any], Any], copy_at: int) -> list[torch.Tensor]:
    """Return what each step gives. The copy takes over from the original before the step `copy_at`."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    if copy_at == 0:
        scheduler = make_copy(scheduler)
    takes = inspect.signature(scheduler.set_timesteps).parameters
    sizes = [argument for argument in ("num_inference_steps", "num_steps") if argument in takes]
    scheduler.set_timesteps(**dict.fromkeys(sizes, STEPS))
    sample = torch.randn(1, 4, 8, 8, generator=generator)
    samples: list[torch.Tensor] = []
    for index, timestep in enumerate(scheduler.timesteps[: 2 * STEPS]):
        if index == copy_at > 0:
            scheduler = make_copy(scheduler)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, timestep)
        prediction = torch.randn(1, 4, 8, 8, generator=generator) * 0.1
        parameters = inspect.signature(scheduler.step).parameters
        takes = {"generator": generator} if "generator" in parameters else {}
        result = scheduler.step(prediction, timestep, sample, **takes)
        sample = result[0]
        samples.append(sample)
    return samples


def attempt(scheduler: Any, make_copy: Callable[[Any], Any], copy_at: int) -> Any:
    """Return what `run` does, or the error: a scheduler may need arguments that this test does not know."""
    try:
        return run(scheduler, make_copy, copy_at)
    except Exception as error:
        return repr(error)


class Task(greenlet.greenlet):
    """Stands where a task runs: steps are counted for it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(function)
        self.task = self
        self.steps = TaskProgress()


@pytest.mark.parametrize("how", sorted(COPIES))
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_the_same_as_the_bare_one(name: str, how: str) -> None:
    make_copy = COPIES[how]
    for copy_at in (2,) if how in ("copy", "deepcopy of a copy") else (0,) if how == "from_config" else (0, 2):
        bare = attempt(make(name), make_copy, copy_at)
        task = Task(lambda copy_at=copy_at: attempt(count_steps(make(name)), make_copy, copy_at))  # type: ignore[misc]
        counted = task.switch()
        assert type(counted) is type(bare)
        if isinstance(bare, str):
            assert counted == bare
            continue
        assert len(counted) == len(bare) > 0
        assert all(torch.equal(one, other) for one, other in zip(counted, bare, strict=True))
        steps = len(bare)
        if how == "pickle":
            steps = copy_at  # what comes out of a pickle is a bare one
        assert task.steps.position[0] == steps


def test_most_can_be_run() -> None:
    # The others want predictions of another kind: tokens, several per step, or coordinates.
    ran = [name for name in SCHEDULERS if not isinstance(attempt(make(name), copy.copy, 0), str)]
    assert len(ran) >= 32, sorted(set(SCHEDULERS) - set(ran))


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_it_looks_like_the_bare_one(name: str, tmp_path: Path) -> None:
    bare, counted = make(name), count_steps(make(name))
    kind = SCHEDULERS[name]
    assert isinstance(counted, kind)
    assert (type(counted).__name__, type(counted).__module__) == (kind.__name__, kind.__module__)
    assert type(counted).__qualname__ == kind.__qualname__
    assert vars(counted).keys() == vars(bare).keys()
    assert counted.config == bare.config
    assert repr(counted) == repr(bare)
    assert inspect.signature(counted.step) == inspect.signature(bare.step)
    assert inspect.signature(type(counted)) == inspect.signature(kind)
    if hasattr(bare, "compatibles"):
        assert set(counted.compatibles) == set(bare.compatibles)
    for folder, scheduler in (("bare", bare), ("counted", counted), ("copy", copy.deepcopy(counted))):
        scheduler.save_config(tmp_path / folder)
    saved = [json.loads((tmp_path / folder / kind.config_name).read_text()) for folder in ("bare", "counted", "copy")]
    assert saved[0] == saved[1] == saved[2]
    assert saved[0]["_class_name"] == name
    if name != "SASolverScheduler":  # which holds a function that cannot be pickled
        assert type(pickle.loads(pickle.dumps(counted))) is kind
    again = type(counted).from_config(counted.config)
    assert again.config == kind.from_config(bare.config).config


def test_a_scheduler_of_ones_own() -> None:
    class Slotted:
        __slots__ = ("timesteps",)

        def set_timesteps(self, steps: int) -> None:
            self.timesteps = list(range(steps))

        def step(self, value: Any, timestep: int, sample: Any) -> tuple[Any]:
            return (sample + value,)

    slotted = Slotted()
    assert count_steps(slotted) is slotted
    assert type(slotted) is Slotted

    class OfItself(diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
        """Refers to itself, and says how it is copied."""

        def __init__(self) -> None:
            super().__init__()
            self.first_step = self.step
            self.copies = 0

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            made = type(self)()
            made.copies = self.copies + 1
            return made

    counted = count_steps(OfItself())
    made = copy.deepcopy(counted)
    assert made.copies == 1
    assert made.first_step.__self__ is made
    shallow = copy.copy(counted)
    assert shallow is not counted
    assert count_steps(counted) is counted


def test_one_that_refers_to_itself_is_copied() -> None:
    scheduler = count_steps(diffusers.EulerDiscreteScheduler())
    scheduler.own = [scheduler, scheduler.set_timesteps]
    made = copy.deepcopy(scheduler)
    assert made is not scheduler
    assert made.own[0] is made
    made.own[1](3)
    assert len(made.timesteps) == 3
    assert len(scheduler.timesteps) == 1000


def test_a_step_that_is_replaced_later_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = count_steps(diffusers.EulerDiscreteScheduler())
    monkeypatch.setattr(diffusers.EulerDiscreteScheduler, "step", lambda *_: "theirs")
    assert scheduler.step(1, 2, 3) == "theirs"


def test_a_slotted_scheduler_is_looked_at_like_any_other() -> None:
    class Slotted:
        __slots__ = ("step",)

        def set_timesteps(self, steps: int) -> None: ...

    assert foreign_step(Slotted()) is None
