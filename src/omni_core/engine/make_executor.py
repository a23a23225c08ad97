"""Makes and starts the executor that the configuration names."""

from __future__ import annotations

import dataclasses
from typing import Any

from omni_core.config import OmniDiffusionConfig
from omni_core.error_text import described_error
from omni_core.errors import ContractError, OmniError, StartupError
from omni_core.executor import DiffusionExecutor, ExecutorContext
from omni_core.executor_limits import refuse_what_it_cannot
from omni_core.log import get_logger
from omni_core.plugins import PluginRegistry

log = get_logger(__name__)


def make_executor(config: OmniDiffusionConfig, context: ExecutorContext, plugins: PluginRegistry) -> DiffusionExecutor:
    """Return the executor, ready to serve requests.

    Args:
        config: The configuration.
        context: The context from the engine, without `options` and `name`.
        plugins: The registry of executors.

    Raises:
        ConfigError: The executor does not support the configuration.
        PluginError: There is no such executor, or it cannot be used.
        StartupError: It could not start.
    """
    resolved = plugins.resolve_executor(config.executor_class)
    options = resolved.validate_options(config.executor_options)
    assert context.plugins is not None
    refuse_what_it_cannot(resolved.cls, resolved.name, config, context.pipeline, context.plugins)
    try:
        executor: Any = resolved.cls(
            config, dataclasses.replace(context, options=options, name=resolved.spec.name if resolved.spec else "")
        )
    except OmniError:
        raise
    except Exception as error:  # from an overridden __init__; `_init_executor` is wrapped by the base class
        raise StartupError(f"The executor {resolved.name} could not be made: {described_error(error)}") from error
    if not isinstance(executor, DiffusionExecutor):
        raise ContractError(f"{resolved.name} made a {type(executor).__name__}, which is no DiffusionExecutor.")
    return executor


def close_quietly(executor: DiffusionExecutor) -> None:
    """Close an executor after another error, which is the one that the user gets."""
    try:
        executor.close()
    except Exception:
        log.warning("clean-up after a failed start failed too", executor=type(executor).__name__, exc_info=True)
