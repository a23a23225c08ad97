"""How far a pipeline is, told by its own progress bar, or by its scheduler if it has none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

from omni_core.worker.denoisers import schedulers_of
from omni_core.worker.preview import preview


class TaskProgress:
    """Counts the denoising steps of one request.

    Nearly every diffusers pipeline calls `self.progress_bar`; its total and updates are right for samplers of second
    order and for pipelines of several stages, where counting denoiser calls would not be. In the few without one,
    the calls of `scheduler.step` are counted.
    """

    def __init__(self, preview_every: int | None = None) -> None:
        self._preview_every = preview_every
        self._previewed = 0
        self._pipeline: Any = None
        self._latents: Any = None
        self._bars: list[_StepBar] = []
        self._schedulers: list[Any] = []
        self._scheduler_steps = 0

    @property
    def position(self) -> tuple[int, int]:
        """Steps done, and steps in all (0 while not known)."""
        if self._bars:
            return sum(int(bar.n) for bar in self._bars), sum(int(bar.total or 0) for bar in self._bars)
        totals = [_length(getattr(scheduler, "timesteps", None)) for scheduler in self._schedulers]
        return self._scheduler_steps, max(totals) if self._scheduler_steps else 0

    def take_preview(self) -> Any:
        """Return a small picture of the state so far, if one is due, else None."""
        if self._preview_every is None or self._latents is None:
            return None
        step = self.position[0]
        if step // self._preview_every == self._previewed // self._preview_every:
            return None
        self._previewed = step
        return preview(self._pipeline, self._latents)

    def bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """Stand in for `DiffusionPipeline.progress_bar`."""
        if iterable is None and total is None:
            raise ValueError("Either `total` or `iterable` has to be defined.")
        bar = _StepBar(iterable, total=total, disable=True)
        self._bars.append(bar)
        return bar

    def watch(self, pipeline: Any) -> None:
        """Follow the schedulers of this request's own copy of the pipeline."""
        self._pipeline = pipeline
        self._schedulers = schedulers_of(pipeline)
        for scheduler in self._schedulers:
            scheduler.step = self._counted(scheduler.step)

    def _counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)  # pipelines look at the signature of `step`
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self._scheduler_steps += 1
            if self._preview_every is not None:
                self._latents = result[0]
            return result

        return counted


class _StepBar(tqdm):  # type: ignore[type-arg]
    """A tqdm bar that counts and shows nothing: a disabled bar of tqdm's does not count."""

    def __init__(self, iterable: Iterable[Any] | None, total: int | None, disable: bool) -> None:
        super().__init__(iterable, total=total, disable=disable)
        if self.total is None:
            self.total = _length(iterable)

    def update(self, n: float | None = 1) -> bool | None:
        self.n += 1 if n is None else n
        return None

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.n += 1


def _length(sized: Any) -> int:
    try:
        return len(sized)
    except TypeError:
        return 0
