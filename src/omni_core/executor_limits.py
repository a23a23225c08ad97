"""What an executor cannot do for a configuration, told before anything is started."""

from __future__ import annotations

from typing import Any

from omni_core.config import OmniDiffusionConfig
from omni_core.errors import ConfigError
from omni_core.executor import OPTIONS_TO_DECLARE, DiffusionExecutor
from omni_core.hookspecs import WORKER_HOOKS, Hooks


def refuse_what_it_cannot(
    cls: type[DiffusionExecutor], name: str, config: OmniDiffusionConfig, pipeline: Any, hooks: Hooks
) -> None:
    """Refuse what an executor cannot do. Nothing is started.

    Args:
        cls: The executor's class.
        name: What the user wrote for it, as `executor_class`.
        config: The configuration of the engine.
        pipeline: The pipeline object that the engine was given, or None.
        hooks: The plugins of the engine.

    Raises:
        ConfigError: It cannot do something; the message says what to change.
    """
    refuse_unsupported(cls, name, config)
    if pipeline is not None and not cls.accepts_pipeline:
        raise ConfigError(
            f"The executor {name} cannot take a pipeline object: its workers load the pipeline themselves. "
            "Set model to a folder, a hub id or an import path pkg.mod:factory."
        )
    if cls.has_worker_processes:
        _refuse_hooks_given_in_code(name, hooks)


def unsupported_options(cls: type[DiffusionExecutor], config: OmniDiffusionConfig) -> list[str]:
    """Return the names of the options that a configuration sets and that an executor does not honour."""
    fields = type(config).model_fields
    return [
        name
        for name in sorted(OPTIONS_TO_DECLARE - cls.supported_options)
        if getattr(config, name) != fields[name].get_default()
    ]


def refuse_unsupported(cls: type[DiffusionExecutor], name: str, config: OmniDiffusionConfig) -> None:
    """Refuse what a configuration sets and an executor does not honour. Nothing is started.

    Args:
        cls: The executor's class.
        name: What the user wrote for it, as `executor_class`.
        config: The configuration of the engine.

    Raises:
        ConfigError: It sets such an option; the message says where.
    """
    unsupported = unsupported_options(cls, config)
    if unsupported:
        option = unsupported[0]
        raise ConfigError(
            f"The executor {name} does not support {option} = {getattr(config, option)!r} "
            f"(set by {config.sources().get(option, 'argument')}). "
            f"Remove it, or choose another executor_class."
        )


def _refuse_hooks_given_in_code(name: str, hooks: Hooks) -> None:
    """Refuse plugins that change what workers compute and are not installed: other processes do not find them."""
    for hook in WORKER_HOOKS:
        names = hooks.given_in_code(hook)
        if names:
            raise ConfigError(
                f"The plugin {', '.join(names)} was given in code and implements {hook}, which changes pictures, but "
                f"the workers of {name} are other processes, which find installed plugins alone: pictures would "
                "differ. Install it (`omni plugins new NAME --kind pipeline-hook` writes such a distribution), or use "
                "executor_class='inline'."
            )
