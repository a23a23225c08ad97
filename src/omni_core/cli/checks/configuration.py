"""The configuration: whether it is valid, and if not, where to correct it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omni_core.cli.checks.finding import Finding
from omni_core.config import DEFAULT_FILE, ENV_PREFIX, OmniDiffusionConfig, unknown_environment
from omni_core.errors import ConfigError, closest


def check_configuration(config: OmniDiffusionConfig | ConfigError, values: Mapping[str, Any]) -> Iterator[Finding]:
    """Say where the configuration comes from, or how to correct it.

    Args:
        config: The configuration, or why there is none.
        values: The flags, by name.
    """
    if isinstance(config, OmniDiffusionConfig):
        sources = {source for source in config.sources().values() if source != "default"}
        origin = f"valid, from {', '.join(sorted(sources))}" if sources else "valid, all defaults"
        yield Finding("config", "ok", origin)
    else:
        yield Finding("config", "problem", config.message, _cure(config.message, values))


def check_environment() -> Iterator[Finding]:
    """Look for OMNI_* variables that mean nothing."""
    for name in unknown_environment():
        near = closest(name.removeprefix(ENV_PREFIX), OmniDiffusionConfig.model_fields)
        if near is None:  # a near miss is refused, and told with the configuration
            cure = f"`unset {name}`, unless it is another program's"
            yield Finding("environment", "warning", f"{name} means nothing to omni", cure)


def _cure(message: str, values: Mapping[str, Any]) -> str:
    for name in unknown_environment():
        if name in message:
            near = closest(name.removeprefix(ENV_PREFIX), OmniDiffusionConfig.model_fields) or ""
            return f"`unset {name}`; what was meant is likely `export {ENV_PREFIX}{near.upper()}={os.environ[name]}`"
    file = values.get("config_file") or DEFAULT_FILE
    if "cannot be read" in message or "no configuration file" in message:
        if "Permission denied" in message:
            return f"`chmod a+r {file}`, as its owner"
        return f"Correct {file} there; it is TOML, with one `name = value` a line"
    for name in OmniDiffusionConfig.model_fields:
        if re.search(rf"\b{name}\b", message):
            return _correct_field(name, file, values)
    return f"Correct what it names in {file}, in the variables {ENV_PREFIX}* or among the flags"


def _correct_field(name: str, file: str, values: Mapping[str, Any]) -> str:
    # In the order in which sources go before each other.
    if any(values.get(parameter) not in (None, ()) for parameter in (name, f"{name}_options")):
        return f"Correct the flag --{name.replace('_', '-')}; `omni doctor --help` describes it"
    variable = f"{ENV_PREFIX}{name.upper()}"
    if any(found == variable or found.startswith(f"{variable}__") for found in os.environ):
        return f"Correct the variable, or `unset {variable}`"
    return f"Correct {name} in {file}; `omni config --help` describes it"
