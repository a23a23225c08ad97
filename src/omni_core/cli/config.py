"""`omni config`: the effective configuration."""

from __future__ import annotations

import json
from typing import Any

import click

from omni_core.cli.app import COMMANDS, registry_of
from omni_core.cli.options import SectionedCommand, config_from, config_options
from omni_core.cli.streams import say
from omni_core.cli.tables import print_table
from omni_core.config import OmniDiffusionConfig, unknown_environment
from omni_core.errors import PluginError
from omni_core.executor_limits import refuse_unsupported
from omni_core.plugins import PluginRegistry


def show_config(**values: Any) -> None:
    """Print each field with its value and where it came from."""
    config = config_from(command, values)
    try:
        _check_executor(config, registry_of(click.get_current_context()))
    except PluginError as error:  # the rest of the configuration is of interest all the same
        say(f"Warning: whether the executor takes this was not checked: {error.message}")
    sources = config.sources()
    unknown = unknown_environment()
    fields = {name: getattr(config, name) for name in type(config).model_fields}
    if values["as_json"]:
        document = {
            "config": {name: {"value": value, "source": sources[name]} for name, value in fields.items()},
            "unknown_environment": unknown,
        }
        click.echo(json.dumps(document, indent=2, default=str, ensure_ascii=False))
        return
    print_table(
        ["field", "value", "from"],
        [[name, _as_text(value), sources[name]] for name, value in fields.items()],
    )
    for name in unknown:
        say(f"The environment variable {name} is set and means nothing to omni.")


def _check_executor(config: OmniDiffusionConfig, plugins: PluginRegistry) -> None:
    """Refuse what the engine would refuse before it starts anything.

    Raises:
        ConfigError: The executor has no such options, or does not honour what is set.
        PluginError: There is no such executor, or it cannot be imported.
    """
    resolved = plugins.resolve_executor(config.executor_class)
    resolved.validate_options(config.executor_options)
    refuse_unsupported(resolved.cls, resolved.name, config)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


command = SectionedCommand(
    "config",
    callback=show_config,
    params=[click.Option(["as_json", "--json"], is_flag=True, help="Print JSON."), *config_options()],
    help=f"{COMMANDS['config']}\n\nStrongest first: flags, OMNI_* variables, omni.toml (or --config FILE), defaults.",
    short_help=COMMANDS["config"],
)
