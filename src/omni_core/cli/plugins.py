"""`omni plugins`: what is installed, and what is wrong with it."""

from __future__ import annotations

import json

import click

from omni_core.cli.app import COMMANDS, registry_of
from omni_core.cli.plugins_check import check
from omni_core.cli.plugins_new import new
from omni_core.cli.tables import print_table


@click.group("plugins", help=COMMANDS["plugins"], short_help=COMMANDS["plugins"], invoke_without_command=True)
@click.option("as_json", "--json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Print one line for each plugin."""
    if context.invoked_subcommand is not None:
        return
    records = [record.to_dict() for record in registry_of(context).records]
    if as_json:
        click.echo(json.dumps(records, indent=2, ensure_ascii=False))
        return
    rows = [
        [
            record["distribution"] or "(in code)",
            record["version"] or "",
            record["name"],
            record["state"],
            ", ".join(spec["name"] for spec in record["executors"]) or "-",
            ", ".join(hook.removeprefix("omni_") for hook in record["hooks"]) or "-",
        ]
        for record in records
    ]
    if rows:
        print_table(["distribution", "version", "plugin", "state", "executors", "hooks"], rows)
    else:
        click.echo("No plugins, not even omni-core's own: install omni-core with pip.")
    for record in records:
        if record["error"]:
            click.echo(f"\n{record['distribution'] or record['name']} is {record['state']}: {record['error']}")
        for warning in record["warnings"]:
            click.echo(f"\n{record['distribution'] or record['name']}: {warning}")


command.add_command(check)
command.add_command(new)
