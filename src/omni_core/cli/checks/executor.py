"""The executor that is selected, and whether it can do what the configuration asks of it."""

from __future__ import annotations

from collections.abc import Iterator

from omni_core.cli.checks.cures import place_of, set_field, take_back
from omni_core.cli.checks.finding import Finding
from omni_core.config import OmniDiffusionConfig
from omni_core.errors import (
    ConfigError,
    ExecutorNotFoundError,
    OmniError,
    PluginConflictError,
    PluginVersionError,
    closest,
)
from omni_core.executor_limits import refuse_unsupported, unsupported_options
from omni_core.hookspecs import API_VERSION
from omni_core.plugins import PluginRegistry
from omni_core.plugins.records import normalise
from omni_core.plugins.selection import DISTRIBUTION_PREFIX, PUBLISHED, ResolvedExecutor, published, speaks

# There is none: a look at the configuration alone.
_NO_ENGINE = "0"


def check_executor(config: OmniDiffusionConfig, plugins: PluginRegistry) -> Iterator[Finding]:
    """Look whether the executor can be imported, and honours what is set, without starting it."""
    try:
        resolved = plugins.resolve_executor(config.executor_class)
    except OmniError as error:
        yield Finding("executor", "problem", error.message, _selection_cure(error, config, plugins))
    else:
        yield from _options(config, resolved)
    try:
        plugins.call_strict("omni_configure", config=config, engine_id=_NO_ENGINE)
    except OmniError as error:
        yield Finding("plugins", "problem", error.message, "Do what it says; the engine does not start before")


def _options(config: OmniDiffusionConfig, resolved: ResolvedExecutor) -> Iterator[Finding]:
    refused = False
    try:
        refuse_unsupported(resolved.cls, resolved.name, config)
    except ConfigError as error:
        refused = True
        name = unsupported_options(resolved.cls, config)[0]
        yield Finding(
            "executor", "problem", error.message, f"{take_back(name, config)}, or choose another executor_class"
        )
    try:
        resolved.validate_options(config.executor_options)
    except ConfigError as error:
        refused = True
        cure = f"{take_back('executor_options', config)}, or choose another executor_class"
        if resolved.options is not None:
            fields = ", ".join(resolved.options.model_fields)
            place = place_of("executor_options", config)
            cure = f"Correct {place}; the executor {resolved.name} has the options {fields}"
        yield Finding("executor", "problem", error.message, cure)
    if not refused:
        place = f"{resolved.cls.__module__}:{resolved.cls.__qualname__}"
        yield Finding("executor", "ok", f"{resolved.name} ({place})")


def _selection_cure(error: OmniError, config: OmniDiffusionConfig, plugins: PluginRegistry) -> str:
    choice = str(config.executor_class)
    names = sorted({spec.name for _, spec in plugins.executors})
    if isinstance(error, ExecutorNotFoundError):
        near = closest(choice, names)
        if near is not None:
            return set_field("executor_class", near, config)
        if ":" in choice:
            return f"Correct the import path, and see that `python -c 'import {choice.partition(':')[0]}'` works"
        distribution = published(closest(choice, PUBLISHED) or choice)
        if distribution is not None:
            return f"`pip install {distribution}`, or set executor_class to one of {', '.join(names)}"
        return f"{set_field('executor_class', 'inline', config)}, or install the plugin that has it"
    if isinstance(error, PluginVersionError):
        return _version_cure(choice, plugins)
    if isinstance(error, PluginConflictError):
        ways = [f"{record.qualifier}:{spec.name}" for record, spec in plugins.executors if spec.name == choice]
        return " or ".join(set_field("executor_class", way, config) for way in ways)
    for record in plugins.records:
        owns = normalise(record.qualifier) in (normalise(choice.partition(":")[0]), f"{DISTRIBUTION_PREFIX}{choice}")
        if record.state == "disabled" and (owns or record.name == choice):
            return f"Take {record.name} out of OMNI_PLUGINS_DISABLE: `unset OMNI_PLUGINS_DISABLE`"
        offers = any(spec.name == choice for spec in record.executors)
        if record.distribution is not None and (owns or offers or record.name == choice):
            return f"`pip install --upgrade {record.distribution}`"
    return f"{set_field('executor_class', 'inline', config)}, or one of {', '.join(names)}"


def _version_cure(choice: str, plugins: PluginRegistry) -> str:
    name = choice.rpartition(":")[2]
    for record in plugins.records:
        for spec in record.executors:
            if spec.name == name and not speaks(spec):
                older = record.distribution or record.name
                return f"`pip install --upgrade {'omni-core' if spec.api > API_VERSION else older}`"
    return "`pip install --upgrade omni-core`"
