"""The configuration: whether it is valid, and if not, where to correct it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

from omni_core.cli.checks.cures import correct, file_of
from omni_core.cli.checks.finding import Finding
from omni_core.config import ENV_PREFIX, OmniDiffusionConfig, unknown_environment
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
        yield Finding("config", "problem", config.message, _cure(config, values))


def check_environment() -> Iterator[Finding]:
    """Look for OMNI_* variables that mean nothing."""
    for name in unknown_environment():
        near = closest(name.removeprefix(ENV_PREFIX), OmniDiffusionConfig.model_fields)
        if near is None:  # a near miss is refused, and told with the configuration
            cure = f"`unset {name}`, unless it is another program's"
            yield Finding("environment", "warning", f"{name} means nothing to omni", cure)


def _cure(error: ConfigError, values: Mapping[str, Any]) -> str:
    message, file = error.message, file_of(values)
    if isinstance(error.__cause__, pydantic.ValidationError):
        problems = error.__cause__.errors(include_url=False, include_context=False)
        cures = dict.fromkeys(_cure_of_field(dict(problem), values) for problem in problems if problem["loc"])
        if cures:
            return ". ".join(cures)
    for name in unknown_environment():
        if name in message:
            near = closest(name.removeprefix(ENV_PREFIX), OmniDiffusionConfig.model_fields) or ""
            return f"`unset {name}`; what was meant is likely `export {ENV_PREFIX}{near.upper()}={os.environ[name]}`"
    variable = re.search(r"the environment variable (\w+) cannot be read", message)
    if variable is not None:
        return f"`unset {variable[1]}`, or write JSON there"
    if "no configuration file" in message:
        return "Name a file that is there with --config, or leave it out"
    if "cannot be read" in message:
        if "Permission denied" in message:
            return f"`chmod a+r {file}`, as its owner"
        return f"Correct {file} there; it is TOML, with one `name = value` a line"
    return f"Correct what it names in {file}, in the variables {ENV_PREFIX}* or among the flags"


def _cure_of_field(problem: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    name = str(problem["loc"][0])
    if name in OmniDiffusionConfig.model_fields:
        return correct(name, values)
    # Flags and variables are of fields that there are, so it is in the file.
    file = file_of(values)
    if isinstance(problem.get("input"), Mapping):
        return f"Remove the line [{name}] from {file}: fields stand in no table; `omni config --help` lists them"
    near = closest(name, OmniDiffusionConfig.model_fields)
    if near is not None:
        return f"Rename {name} to {near} in {file}, if that was meant; else remove it"
    return f"Remove {name} from {file}; `omni config --help` lists the fields"
