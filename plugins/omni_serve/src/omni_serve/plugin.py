"""The plugin: it adds the command `omni serve`."""

from __future__ import annotations

import click

from omni_core.hookspecs import hookimpl


@hookimpl
def omni_cli(app: click.Group) -> None:
    """Add `omni serve`."""
    from omni_serve.command import make_command

    app.add_command(make_command())
