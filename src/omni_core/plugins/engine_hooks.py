"""The hooks of one engine: the same plugins for all engines of a process, told which engine it is."""

from __future__ import annotations

import itertools
from typing import Any

from omni_core.hookspecs import Hooks

_numbers = itertools.count(1)


def new_engine_id() -> str:
    """Return the id of one more engine of this process: "1" is the first."""
    return str(next(_numbers))


class EngineHooks(Hooks):
    """Calls hooks with `engine_id` besides the arguments that are given.

    Args:
        hooks: The plugins.
        engine_id: The engine's.
    """

    def __init__(self, hooks: Hooks, engine_id: str) -> None:
        self._hooks = hooks
        self.engine_id = engine_id

    def notify(self, hook_name: str, /, **arguments: Any) -> None:
        """Tell observers; what they raise is logged and goes no further."""
        self._hooks.notify(hook_name, engine_id=self.engine_id, **arguments)

    def call_strict(self, hook_name: str, /, **arguments: Any) -> None:
        """Call a hook; what a plugin raises comes out, with the plugin's name."""
        self._hooks.call_strict(hook_name, engine_id=self.engine_id, **arguments)

    def call_first(self, hook_name: str, kind: type, /, **arguments: Any) -> Any:
        """Call a hook until a plugin returns something."""
        return self._hooks.call_first(hook_name, kind, engine_id=self.engine_id, **arguments)

    def call_chain(self, hook_name: str, kind: type, changed: str, /, **arguments: Any) -> Any:
        """Call a hook whose implementations change one of its arguments one after the other."""
        return self._hooks.call_chain(hook_name, kind, changed, engine_id=self.engine_id, **arguments)

    def has(self, hook_name: str, /) -> bool:
        """Return whether any plugin implements a hook."""
        return self._hooks.has(hook_name)

    def given_in_code(self, hook_name: str, /) -> tuple[str, ...]:
        """Return the plugins that implement a hook and are not installed."""
        return self._hooks.given_in_code(hook_name)
