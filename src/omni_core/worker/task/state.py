"""What belongs to a task and stands in the thread and in the shared modules while the task runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from omni_core.engine_place import is_worker_process
from omni_core.worker.pipeline.module_edits import EditableParts, ModuleEdits
from omni_core.worker.task.cache_state import CacheState
from omni_core.worker.task.generators import TaskRandom
from omni_core.worker.task.process_state import ProcessState, install_setters
from omni_core.worker.task.random_draws import draw_from, install_draws
from omni_core.worker.task.torch_state import TorchState


class TaskState:
    """The state of one task: torch's (grad mode, autocast), the process's, its random generators, step caches, changes
    to the model.

    Begins as the state that the thread is in, with the generators seeded, no cache and no changes.

    Args:
        device: The device whose autocast belongs to the state, besides the CPU's.
        seed: Seed of the request.
        cached_modules: The denoisers on which a step cache is enabled.
        editable_parts: Where the pipeline may change its denoisers.
    """

    def __init__(
        self,
        device: torch.device,
        seed: int,
        cached_modules: Sequence[torch.nn.Module],
        editable_parts: EditableParts,
    ) -> None:
        self._device = device
        self.torch = TorchState(device)
        self.process = ProcessState(seed, is_worker_process())
        self.random = TaskRandom(seed)
        self.cache = CacheState(cached_modules)
        self.edits = ModuleEdits(editable_parts)

    def put_in(self) -> None:
        """Make this state the thread's and the modules'."""
        self.torch.resume()
        self.process.put_in()
        draw_from(self.random)
        self.cache.swap_in()
        self.edits.swap_in()

    def take_out(self, outside: TorchState) -> None:
        """Note what the thread's state has become, and make the modules what they were before.

        Args:
            outside: The thread's state before the first task was put in place.
        """
        self.edits.swap_out()
        self.cache.swap_out()
        self.torch = TorchState(self._device)
        self.torch.suspend(outside)
        self.process.take_out()
        draw_from(None)


class StateSwitch:
    """Knows whose state is in place. It stays there until another is needed, so a task that runs on its own pays once.

    Args:
        device: As for the states.
    """

    def __init__(self, device: torch.device) -> None:
        # Waits until no other thread works for a task.
        self.settle: Callable[[], None] = lambda: None
        self._device = device
        self._current: TaskState | None = None
        self._outside: TorchState | None = None
        install_draws()
        if not is_worker_process():
            install_setters()

    def enter(self, state: TaskState) -> None:
        """Put a state in place, and take out the one that is there."""
        if state is self._current:
            return
        if state.process.mode is not None:
            self.settle()  # the other thread must not see what is this task's alone
        if self._current is None or self._outside is None:
            self._outside = TorchState(self._device)
        else:
            self._current.take_out(self._outside)
        self._current = state
        state.put_in()

    def leave(self) -> None:
        """Take out the state that is in place: the thread is as it was before the first was put in."""
        if self._current is None:
            return
        assert self._outside is not None
        self._current.take_out(self._outside)
        self._current = None
        self._outside.resume()
        self._outside = None
