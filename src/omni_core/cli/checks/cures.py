"""How to set or take back a field of the configuration, in whichever of its sources it is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from omni_core.config import DEFAULT_FILE, ENV_PREFIX, OmniDiffusionConfig


def set_field(name: str, value: object, config: OmniDiffusionConfig | None = None) -> str:
    """Return the command that gives a field a value.

    Args:
        name: The field.
        value: What it is to be.
        config: The configuration as it is. A flag goes before the variable, so what a flag sets only a flag can mend.
    """
    text = shlex.quote(str(value).lower() if isinstance(value, bool) else str(value))
    if config is not None and config.sources().get(name) == "argument":
        return f"`{flag_of(name)}`" if value is True else f"`{flag_of(name)} {text}`"
    return f"`export {ENV_PREFIX}{name.upper()}={text}`"


def take_back(name: str, config: OmniDiffusionConfig) -> str:
    """Return what is to be done so that a field has its default again."""
    source = config.sources().get(name, "argument")
    if source.startswith("environment "):
        return f"`unset {' '.join(variables_of(name))}`"
    if source.startswith("file "):
        return f"Remove {name} from {source.removeprefix('file ')}"
    return f"Leave out {flag_of(name)}"


def place_of(name: str, config: OmniDiffusionConfig) -> str:
    """Return what sets a field: a flag, variables, or a line of a file."""
    source = config.sources().get(name, "argument")
    if source.startswith("environment "):
        return " and ".join(variables_of(name))
    return f"{name} in {source.removeprefix('file ')}" if source.startswith("file ") else f"the flag {flag_of(name)}"


def correct(name: str, values: Mapping[str, Any]) -> str:
    """Return where to correct a field with an impossible value, for which there is no configuration that could say.

    Args:
        name: The field.
        values: The flags, by name.
    """
    # In the order in which sources go before each other.
    if any(values.get(parameter) not in (None, ()) for parameter in (name, f"{name}_options")):
        return f"Correct the flag {flag_of(name)}; `omni doctor --help` describes it"
    variables = variables_of(name)
    if variables:
        return f"Correct {' and '.join(variables)}, or `unset {' '.join(variables)}`"
    return f"Correct {name} in {file_of(values)}; `omni config --help` describes it"


def flag_of(name: str) -> str:
    """Return the flag of a field."""
    return f"--{name.replace('_', '-')}"


def file_of(values: Mapping[str, Any]) -> str:
    """Return the file that is read."""
    return str(values.get("config_file") or DEFAULT_FILE)


def variables_of(name: str) -> list[str]:
    """Return the environment variables that set a field or a part of it; case does not count in their names."""
    whole = f"{ENV_PREFIX}{name}".lower()
    return sorted(found for found in os.environ if found.lower() == whole or found.lower().startswith(f"{whole}__"))


# What gives the field `model` a value, for checks that look at a folder alone.
SetModel = Callable[[object], str]
