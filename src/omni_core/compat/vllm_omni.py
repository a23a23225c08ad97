"""What the engine still understands of vLLM-Omni's, and what it says of the names that are gone.

All of it is here and in docs/MIGRATION.md. To drop it: delete this module and what imports it, nothing else changes.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omni_core.errors import ConfigError, OmniError

if TYPE_CHECKING:
    from omni_core.config import OmniDiffusionConfig
    from omni_core.executor import DiffusionExecutor
    from omni_core.outputs import OmniRequestOutput

_STARTS_BY_ITSELF = "Write DiffusionEngine(config): it starts the workers, through its executor, and waits for them."
_CLOSES_BY_ITSELF = (
    "The executor ends the workers: write engine.close(), or `with DiffusionEngine(config) as engine:`. "
    "An engine that nobody refers to any more closes by itself, as all do when Python ends."
)
_RUN_REQUESTS = "Write engine.step(requests)."
_CALL_WORKERS = (
    "Workers are called by name and each reply finds its caller. "
    'Write engine.collective_rpc("sleep", kwargs={"level": 1}), or engine.sleep(level=1).'
)

# Name to what to write instead. The first three tables are of attributes, the last of names that are imported.
OF_ENGINE: Mapping[str, str] = {
    "_launch_workers": _STARTS_BY_ITSELF,
    "_make_client": _STARTS_BY_ITSELF,
    "_processes": "The executor has the workers: write engine.stats().workers.",
    "add_req_and_wait_for_response": (
        "Write engine.step(requests), or engine.executor.execute_model(requests) to pass by the engine's queue."
    ),
    "od_config": "Write engine.config.",
    "resources": _CLOSES_BY_ITSELF,
}
OF_ENGINE_SCHEDULER: Mapping[str, str] = {
    "close": _CLOSES_BY_ITSELF,
    "initialize": _STARTS_BY_ITSELF,
    "mq": _CALL_WORKERS,
    "num_workers": "The executor has the workers: write engine.executor.num_replicas, or engine.stats().workers.",
    "result_mq": _CALL_WORKERS,
}
OF_SCHEDULER_MODULE: Mapping[str, str] = {
    **OF_ENGINE_SCHEDULER,
    "add_req": _RUN_REQUESTS,
}
_NO_GLOBAL_SCHEDULER = f"Each engine has a scheduler of its own. {_RUN_REQUESTS}"
IMPORTED: Mapping[str, Mapping[str, str]] = {
    "omni_core": {"BackgroundResources": _CLOSES_BY_ITSELF},
    "omni_core.engine.engine": {"BackgroundResources": _CLOSES_BY_ITSELF, "scheduler": _NO_GLOBAL_SCHEDULER},
    "omni_core.scheduler": {"scheduler": _NO_GLOBAL_SCHEDULER},
}
# Methods that were edited or overridden there to bring an executor in. Nothing calls them here.
_FORMER_WAYS_IN = ("_get_executor_class", "_launch_workers", "_make_client")


class GoneAttributeError(OmniError, AttributeError):
    """An attribute that vLLM-Omni's engine has and omni's has not; the message says what to write instead."""


class GoneImportError(OmniError, ImportError):
    """A name that vLLM-Omni's modules have and omni's have not; the message says what to write instead."""


def missing_from_module(module: str, name: str) -> Exception:
    """Return what the `__getattr__` of a module shall raise.

    Args:
        module: Its full name.
        name: What it was asked for.
    """
    if name in IMPORTED.get(module, ()):
        # No AttributeError: `from … import …` would replace its message.
        return GoneImportError(_sentence(f"{name} of vLLM-Omni", IMPORTED[module][name]))
    if module == "omni_core.scheduler" and name in OF_SCHEDULER_MODULE:
        return _gone(f"scheduler.{name}", name, OF_SCHEDULER_MODULE[name])
    return AttributeError(f"module {module!r} has no attribute {name!r}")


class FormerScheduler:
    """Stands for the scheduler that vLLM-Omni's engine had.

    Args:
        engine: Whose it is.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def add_req(self, requests: Any) -> list[OmniRequestOutput]:
        """Run requests and wait for all of them. Deprecated: `DiffusionEngine.step` does the same."""
        _warn("engine.scheduler.add_req(requests)", "engine.step(requests)")
        outputs: list[OmniRequestOutput] = self._engine.step(requests)
        return outputs

    if not TYPE_CHECKING:  # type checkers shall go on to refuse names that do not exist

        def __getattr__(self, name: str) -> Any:
            if name in OF_ENGINE_SCHEDULER:
                raise _gone(f"engine.scheduler.{name}", name, OF_ENGINE_SCHEDULER[name])
            return object.__getattribute__(self, name)  # raises what Python itself raises


def former_executor_class(engine_class: Any, config: OmniDiffusionConfig | None) -> type[DiffusionExecutor]:
    """Return what `DiffusionEngine._get_executor_class()` returned, with a warning.

    Args:
        engine_class: The class of the engine.
        config: What it was given.
    """
    from omni_core.config import OmniDiffusionConfig

    _warn("DiffusionEngine._get_executor_class()", "DiffusionEngine.get_executor_class(config)", level=4)
    chosen = config if config is not None else OmniDiffusionConfig()
    found: type[DiffusionExecutor] = engine_class.get_executor_class(chosen)
    return found


def refuse_former_ways_in(engine_class: type, own_class: type) -> None:
    """Refuse an engine that was changed to bring an executor in: the change would have no effect.

    Args:
        engine_class: The class of the engine that is made.
        own_class: `DiffusionEngine`.

    Raises:
        ConfigError: It was.
    """
    for name in _FORMER_WAYS_IN:
        # On the class, however it came there: by a subclass or by assignment.
        found = inspect.getattr_static(engine_class, name, None)
        function = getattr(found, "__func__", found)
        if function is not None and getattr(function, "__module__", None) != own_class.__module__:
            raise ConfigError(
                f"{engine_class.__name__} has a {name} of its own, which nothing calls. Write a subclass of "
                "DiffusionExecutor and select it: OmniDiffusionConfig(executor_class=MyExecutor), or "
                'executor_class="my_package:MyExecutor". See docs/MIGRATION.md.'
            )


def missing_attribute(engine: Any, name: str) -> Any:
    """Raise what the `__getattr__` of an engine shall raise.

    Args:
        engine: The engine.
        name: What it was asked for.
    """
    if name in OF_ENGINE:
        raise _gone(f"engine.{name}", name, OF_ENGINE[name])
    return object.__getattribute__(engine, name)  # raises what Python itself raises


def _sentence(what: str, instead: str) -> str:
    return f"{what} does not exist here. {instead} See docs/MIGRATION.md."


def _gone(what: str, name: str, instead: str) -> GoneAttributeError:
    error = GoneAttributeError(_sentence(f"{what} of vLLM-Omni", instead))
    # Set here, or Python sets it together with `obj`, and then guesses at what was meant after our message.
    error.name = name
    return error


def _warn(old: str, new: str, level: int = 3) -> None:
    warnings.warn(f"{old} is deprecated: write {new}. See docs/MIGRATION.md.", DeprecationWarning, stacklevel=level)
