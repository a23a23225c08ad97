"""What a running pipeline changes in the shared modules, kept apart by request.

Some pipelines put attention processors or forward hooks into the model for the time of one call, and take them out
again at its end: those with perturbed-attention or self-attention guidance, for example. Here several calls take turns
on the same model, so what one has put into it must be there when it runs, and at no other time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

_ATTRIBUTE = "processor"


def parts_of(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """Return the modules and all modules inside them, each once. Faster than `torch.nn.Module.modules`."""
    found: dict[int, torch.nn.Module] = {}
    left = list(modules)
    while left:
        part = left.pop()
        if id(part) not in found:
            found[id(part)] = part
            left.extend(child for child in part._modules.values() if child is not None)
    return list(found.values())


class EditableParts:
    """The places in some modules that pipelines are known to change: attention processors and forward hooks.

    Args:
        parts: The denoisers and all modules inside them, each once: see `parts_of`.
    """

    def __init__(self, parts: Sequence[torch.nn.Module]) -> None:
        self.holders = [part for part in parts if getattr(part, _ATTRIBUTE, None) is not None]
        self.hooks: list[dict[int, Any]] = [
            hooks for part in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)
        ]

    def processors(self) -> list[Any]:
        """Return the attention processors as they are now."""
        return [getattr(holder, _ATTRIBUTE) for holder in self.holders]

    def set_processor(self, index: int, processor: Any) -> None:
        """Put a processor in place, whether it and the one before are modules or not."""
        holder = self.holders[index]
        holder._modules.pop(_ATTRIBUTE, None)
        setattr(holder, _ATTRIBUTE, processor)


class ModuleEdits:
    """The changes of one request.

    Args:
        parts: Where changes are looked for.
    """

    def __init__(self, parts: EditableParts) -> None:
        self._parts = parts
        self._processors: dict[int, Any] = {}
        self._hooks: dict[int, dict[int, Any]] = {}
        self._processors_outside: list[Any] = []
        self._hooks_outside: list[int] = []

    @property
    def is_active(self) -> bool:
        """Whether the request has changed anything, so that its calls must be run alone."""
        return bool(self._processors or self._hooks)

    @property
    def changes_processors(self) -> bool:
        """Whether the request has put attention processors in place."""
        return bool(self._processors)

    def swap_in(self) -> None:
        """Make the request's changes."""
        parts = self._parts
        self._processors_outside = parts.processors()
        self._hooks_outside = list(map(len, parts.hooks))
        for index, processor in self._processors.items():
            parts.set_processor(index, processor)
        for index, hooks in self._hooks.items():
            parts.hooks[index].update(hooks)

    def swap_out(self) -> None:
        """Take note of what is changed, and make the modules what they were before."""
        parts = self._parts
        pairs = enumerate(zip(parts.processors(), self._processors_outside, strict=True))
        self._processors = {index: now for index, (now, before) in pairs if now is not before}
        for index in self._processors:
            parts.set_processor(index, self._processors_outside[index])
        self._hooks = {}
        lengths = list(map(len, parts.hooks))
        if lengths == self._hooks_outside:
            return
        for index, (length, before) in enumerate(zip(lengths, self._hooks_outside, strict=True)):
            if length <= before:
                continue
            hooks = parts.hooks[index]
            # Those of the request were added last, as dicts keep their order.
            self._hooks[index] = dict(list(hooks.items())[before:])
            for key in self._hooks[index]:
                del hooks[key]
