"""How far a pipeline is, told by its own progress bar, or by its scheduler if it has none."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from tqdm import tqdm

from omni_core.error_text import is_ctrl_c
from omni_core.log import get_logger
from omni_core.worker.pipeline.preview import preview

log = get_logger(__name__)

# How the arguments are called that say how many steps a pipeline, or a stage of it, takes.
_STEPS = "num_inference_steps"


class TaskProgress:
    """Counts the denoising steps of one request.

    Nearly every diffusers pipeline calls `self.progress_bar`; its total and updates are right for samplers of second
    order and for pipelines of several stages, where counting denoiser calls would not be. In the few without one,
    the calls of `scheduler.step` are counted, whichever scheduler it is of.

    Args:
        preview_every: Steps between two previews. None: `previews` says.
        previews: How many previews, evenly spread over the steps before the last. None: none.
    """

    def __init__(self, preview_every: int | None = None, previews: int | None = None) -> None:
        self._preview_every = preview_every
        self._previews = previews
        self._previewed = 0
        self._pipeline: Any = None
        self._sample: Any = None
        self._bars: list[_StepBar] = []
        # Steps of the stages before, and those of the schedulers of this one, by their id.
        self._steps_before = 0
        self._stepped: dict[int, tuple[Any, int]] = {}
        # Copies that have not stepped yet, with the steps of what they are copies of.
        self._copies: dict[int, tuple[Any, int]] = {}
        self._stages: list[int] = []

    @property
    def position(self) -> tuple[int, int]:
        """Steps done, and steps in all (0 while not known)."""
        if self._bars:
            done = sum(int(bar.n) for bar in self._bars if not bar.inner)
            return done, sum(bar.expected for bar in self._bars if bar.outer is None) + sum(self._stages_to_come())
        done = self._steps_before + max((steps for _, steps in self._stepped.values()), default=0)
        total = self._steps_before + max((_length(one, "timesteps") for one, _ in self._stepped.values()), default=0)
        return done, max(done, total)

    @property
    def sample(self) -> Any:
        """What the last step of a scheduler gave, or None if there was none."""
        return self._sample

    def take_preview(self) -> Any:
        """Return a small picture of the state so far, if one is due, else None."""
        if (self._preview_every is None and self._previews is None) or self._sample is None:
            return None
        due = self._previews_due(*self.position)
        if due <= self._previewed:
            return None
        self._previewed = due
        devices = [self._sample.device] if getattr(self._sample, "is_cuda", False) else []
        try:
            with torch.random.fork_rng(devices):  # an autoencoder that draws random numbers takes none of the request's
                return preview(self._pipeline, self._sample)
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            log.warning("a preview could not be made", error=f"{type(error).__name__}: {error}")
            return None

    def _previews_due(self, step: int, num_steps: int) -> int:
        """Return how many previews there should have been by the end of `step` of `num_steps` (0: not known)."""
        if self._preview_every is not None:
            return step // self._preview_every
        assert self._previews is not None
        # None for the last step: the output itself comes then.
        return step * (self._previews + 1) // num_steps if step < num_steps else 0

    def bar(self, iterable: Iterable[Any] | None = None, total: int | None = None, **_looks: Any) -> Any:
        """Stand in for `DiffusionPipeline.progress_bar`, or for what a pipeline has in its place."""
        if iterable is None and total is None:
            raise ValueError("Either `total` or `iterable` has to be defined.")
        bar = _StepBar(iterable, total=total, disable=True)
        bar.outer = next((outer for outer in reversed(self._bars) if outer.is_open), None)
        if bar.outer is not None:
            bar.outer.inner.append((int(bar.outer.n), bar))
        self._bars.append(bar)
        return bar

    def watch(self, pipeline: Any, arguments: Mapping[str, Any]) -> None:
        """Follow this request's own copy of the pipeline, which is called with `arguments`."""
        self._pipeline = pipeline
        steps = [arguments.get(name, default) for name, default in _step_parameters(type(pipeline).__call__)]
        self._stages = [count for count in steps if type(count) is int] if len(steps) > 1 else []

    def _stages_to_come(self) -> list[int]:
        # A pipeline of several stages has an argument for the steps of each, and opens a bar when a stage begins.
        stages = list(self._stages)
        for bar in self._bars:
            if stages and bar.outer is None:
                total = bar.total
                stages.remove(total if total in stages else stages[0])
        return stages

    def count(self, scheduler: Any, result: Any) -> None:
        """Count a step of a scheduler, which gave `result`."""
        stage = self._stepped
        if id(scheduler) not in stage:
            _, steps = self._copies.pop(id(scheduler), (scheduler, 0))
            if steps == 0 and all(steps >= _length(one, "timesteps") for one, steps in stage.values()):
                # Not beside the others (sound beside picture), but after them.
                self._steps_before += max((steps for _, steps in stage.values()), default=0)
                stage.clear()
            stage[id(scheduler)] = (scheduler, steps)
        stage[id(scheduler)] = (scheduler, stage[id(scheduler)][1] + 1)
        self._sample = result[0] if isinstance(result, tuple) and result else getattr(result, "prev_sample", None)

    def note_copy(self, scheduler: Any, made: Any) -> None:
        """Note that `made` is a copy of a scheduler: it goes on from the same step."""
        known = self._stepped.get(id(scheduler)) or self._copies.get(id(scheduler))
        if known is not None:
            self._copies[id(made)] = (made, known[1])


class _StepBar(tqdm):  # type: ignore[type-arg]
    """A tqdm bar that counts and shows nothing: a disabled bar of tqdm's does not count."""

    def __init__(self, iterable: Iterable[Any] | None, total: int | None, disable: bool) -> None:
        super().__init__(iterable, total=total, disable=disable)
        self.total: int = int(self.total or 0)
        self.is_open = False
        self.outer: _StepBar | None = None
        # Bars that were made in a turn of this one's loop, with the number of the turn: they count the steps then.
        self.inner: list[tuple[int, _StepBar]] = []

    @property
    def expected(self) -> int:
        """Steps in all, as far as can be told."""
        if not self.inner:
            return self.total
        turns = self.inner[-1][0] + 1
        known = sum(bar.expected for _, bar in self.inner)
        return known + known * max(0, self.total - turns) // turns

    def __enter__(self) -> _StepBar:
        self.is_open = True
        return self

    def close(self) -> None:
        self.is_open = False

    def update(self, n: float | None = 1) -> bool | None:
        self.n += 1 if n is None else n
        return None

    def __iter__(self) -> Iterator[Any]:
        self.is_open = True
        try:
            for item in self.iterable:
                yield item
                self.n += 1
        finally:
            self.is_open = False


@functools.lru_cache(maxsize=64)
def _step_parameters(call: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Return the arguments of a pipeline's call that say how many steps to take, with their defaults."""
    parameters = inspect.signature(call).parameters
    return [(name, parameter.default) for name, parameter in parameters.items() if name.endswith(_STEPS)]


def _length(holder: Any, name: str) -> int:
    try:
        return len(getattr(holder, name))
    except Exception:  # a scheduler of the user's own may do anything, and this is asked outside of its task
        return 0
