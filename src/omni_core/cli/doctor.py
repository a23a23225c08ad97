"""`omni doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import click

from omni_core.cli import exit_codes
from omni_core.cli.app import COMMANDS, registry_of
from omni_core.cli.checks import bounded
from omni_core.cli.checks.configuration import check_configuration, check_environment
from omni_core.cli.checks.cores import check_cores
from omni_core.cli.checks.devices import check_devices
from omni_core.cli.checks.executor import check_executor
from omni_core.cli.checks.finding import Finding
from omni_core.cli.checks.memory import check_memory
from omni_core.cli.checks.model import check_model
from omni_core.cli.checks.plugins import check_plugins
from omni_core.cli.checks.requirements import check_requirements
from omni_core.cli.checks.software import check_software
from omni_core.cli.checks.system import check_system
from omni_core.cli.options import SectionedCommand, config_from, config_options
from omni_core.cli.quiet import quiet_libraries
from omni_core.cli.tables import print_table
from omni_core.config import OmniDiffusionConfig
from omni_core.errors import ConfigError
from omni_core.plugins import PluginRegistry


def diagnose(values: dict[str, Any], find_plugins: Callable[[], PluginRegistry]) -> Iterator[Finding]:
    """Run all checks; those that need a valid configuration are left out if there is none.

    Args:
        values: What click parsed.
        find_plugins: Returns the plugins. Called here, since it imports what others wrote.
    """
    config: OmniDiffusionConfig | None = None
    found: list[PluginRegistry] = []
    try:
        config = config_from(command, values)
    except ConfigError as error:
        configuration = check_configuration(error, values)
    else:
        configuration = check_configuration(config, values)
    # What can hang on somebody else's account comes last.
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("software", check_software),
        ("requirements", check_requirements),
        ("config", lambda: configuration),
        ("environment", check_environment),
        ("devices", partial(check_devices, config)),
        ("cores", partial(check_cores, config)),
        ("memory", partial(check_memory, config)),
        ("system", partial(check_system, config)),
        ("plugins", lambda: _find_and_check(find_plugins, found, config)),
    ]
    if config is not None:
        checks.append(("executor", lambda: check_executor(config, found[0]) if found else ()))
        checks.append(("model", partial(check_model, config)))
    deadline = time.monotonic() + bounded.SECONDS_IN_ALL
    for name, check in checks:
        left = max(bounded.LEAST_SECONDS, deadline - time.monotonic())
        yield from bounded.run_bounded(name, check, min(bounded.SECONDS_PER_CHECK, left))


def doctor(**values: Any) -> None:
    """Print the findings, and exit with 1 if one is a problem."""
    context = click.get_current_context()
    with quiet_libraries():
        findings = list(diagnose(values, partial(registry_of, context)))
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


def _find_and_check(
    find_plugins: Callable[[], PluginRegistry], found: list[PluginRegistry], config: OmniDiffusionConfig | None
) -> Iterator[Finding]:
    found.append(find_plugins())
    yield from check_plugins(found[0], config)


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
