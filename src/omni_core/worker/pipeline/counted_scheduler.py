"""Schedulers whose steps are counted, and whose copies are."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
from typing import Any

from omni_core.worker.pipeline.lookalike import is_lookalike, lookalike
from omni_core.worker.pipeline.stand_ins import running_task


def count_steps(scheduler: Any) -> Any:
    """Let `scheduler.step` tell the progress of the task that calls it. Returns the same scheduler.

    Its class becomes a subclass of what it was. Nothing is set on the scheduler itself, so a copy of it, or another
    made with `type(scheduler).from_config`, is a scheduler of its own and is counted too. One that cannot be counted
    is left as it is.
    """
    real: Any = type(scheduler)
    if is_lookalike(scheduler) or not inspect.isfunction(getattr(real, "step", None)):
        return scheduler
    try:
        scheduler.__class__ = _counted_class(real)
    except TypeError:  # it has slots, or its class is not made by a class statement
        return scheduler
    return scheduler


@functools.lru_cache(maxsize=64)
def _counted_class(real: Any) -> type[Any]:
    @functools.wraps(real.step)  # pipelines look at the signature of `step`
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = real.step(self, *args, **kwargs)
        if (task := running_task()) is not None:
            task.steps.count(self, result)
        return result

    def __copy__(self: Any) -> Any:  # noqa: N807
        return _copied(self, copy.copy)

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:  # noqa: N807
        return _copied(self, lambda scheduler: copy.deepcopy(scheduler, memo))

    def __reduce_ex__(self: Any, _protocol: Any) -> Any:  # noqa: N807
        # Pickled, it is of its real class, which others can import.
        plain = object.__new__(real)
        plain.__dict__ = self.__dict__
        return operator.itemgetter(0), ((plain,),)

    def _copied(scheduler: Any, make_copy: Any) -> Any:
        # As what it really is, so that a `__deepcopy__` of its own, and one that refers to itself, are as ever.
        counted, scheduler.__class__ = scheduler.__class__, real
        try:
            made = make_copy(scheduler)
        finally:
            scheduler.__class__ = counted
        if (task := running_task()) is not None:
            task.steps.note_copy(scheduler, made)
        return count_steps(made)

    members = {
        "step": step,
        "__copy__": __copy__,
        "__deepcopy__": __deepcopy__,
        "__reduce_ex__": __reduce_ex__,
    }
    return lookalike(real, members)
