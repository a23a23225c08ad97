"""`omni doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from omni_core.cli import exit_codes
from omni_core.cli.app import COMMANDS, registry_of
from omni_core.cli.checks.finding import Finding
from omni_core.cli.checks.machine import check_machine
from omni_core.cli.checks.model import check_model
from omni_core.cli.checks.setup import check_environment, check_executor, check_plugins
from omni_core.cli.checks.software import check_software
from omni_core.cli.options import SectionedCommand, config_from, config_options
from omni_core.cli.quiet import quiet_libraries
from omni_core.cli.tables import print_table
from omni_core.config import OmniDiffusionConfig
from omni_core.errors import ConfigError
from omni_core.plugins import PluginRegistry


def diagnose(values: dict[str, Any], plugins: PluginRegistry) -> Iterator[Finding]:
    """Run all checks; those that need a valid configuration are left out if there is none."""
    config: OmniDiffusionConfig | None = None
    yield from check_software()
    try:
        config = config_from(command, values)
    except ConfigError as error:
        yield Finding("config", "problem", error.message, "Correct it where it was set; `omni config` shows the rest")
    else:
        yield Finding("config", "ok", _origin(config))
    yield from check_environment()
    yield from check_machine(config)
    yield from check_plugins(plugins)
    if config is not None:
        yield check_executor(config, plugins)
        yield from check_model(config)


def doctor(**values: Any) -> None:
    """Print the findings, and exit with 1 if one is a problem."""
    context = click.get_current_context()
    with quiet_libraries():
        findings = list(diagnose(values, registry_of(context)))
    problems = sum(finding.state == "problem" for finding in findings)
    warnings = sum(finding.state == "warning" for finding in findings)
    if values["as_json"]:
        click.echo(json.dumps({"problems": problems, "warnings": warnings, "checks": [f.to_dict() for f in findings]}))
    else:
        print_table(["check", "state", "found"], [[f.check, f.state, f.detail] for f in findings])
        for finding in findings:
            if finding.cure:
                click.echo(f"{finding.state}: {finding.check}: {finding.cure}")
        click.echo(_summary(problems, warnings))
    context.exit(exit_codes.FAILED if problems else exit_codes.OK)


def _origin(config: OmniDiffusionConfig) -> str:
    sources = {source for source in config.sources().values() if source != "default"}
    return f"valid, from {', '.join(sorted(sources))}" if sources else "valid, all defaults"


def _summary(problems: int, warnings: int) -> str:
    if not problems and not warnings:
        return "All is well."
    words = [
        f"{count} {name}{'' if count == 1 else 's'}" for count, name in ((problems, "problem"), (warnings, "warning"))
    ]
    return f"{' and '.join(word for word in words if not word.startswith('0 '))}."


command = SectionedCommand(
    "doctor",
    callback=doctor,
    params=[click.Option(["as_json", "--json"], is_flag=True, help="Print JSON."), *config_options()],
    help=f"{COMMANDS['doctor']}\n\nExits with 1 if there is a problem. Looks at the configuration that the same flags, "
    "variables and file would give `omni generate`.",
    short_help=COMMANDS["doctor"],
)
