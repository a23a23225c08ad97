"""The reference of the command line, made from the commands themselves, those of installed plugins among them.

Not by sphinx-click: it knows no sections of flags, and would repeat all fields of the configuration under each command.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from omni_core.cli.app import make_app
from omni_core.cli.options import CONFIG_SECTION

# The command that lists the flags of the configuration; the others refer to it.
_HOME_OF_CONFIG = "omni generate"


def cli_reference() -> str:
    """Return a section for each command, in the order of `omni --help`."""
    return "\n".join(_describe(context) for context in commands())


def commands() -> Iterator[click.Context]:
    """Yield a context for `omni` and for each of its commands and their sub-commands."""
    app = make_app()
    yield from _walk(click.Context(app, info_name="omni", **app.context_settings))


def _walk(context: click.Context) -> Iterator[click.Context]:
    yield context
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if command is not None and not command.hidden:
                yield from _walk(click.Context(command, parent=context, info_name=name, **command.context_settings))


def _describe(context: click.Context) -> str:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## `{context.command_path}`\n", _prose(command.help or ""), f"```text\n{usage}\n```\n"]
    for heading, rows in _flags(context).items():
        if heading == CONFIG_SECTION and context.command_path != _HOME_OF_CONFIG:
            parts.append("Further flags: those of the configuration, as under [`omni generate`](#omni-generate).\n")
            continue
        parts.append(f"| {_cell(heading)} | |\n|---|---|")
        parts += [f"| {flags} | {_cell(text)} |" for flags, text in rows]
        parts.append("")
    if isinstance(command, click.Group):
        names = [child.info_name for child in _walk(context) if child.parent is context]
        parts.append("Commands: " + ", ".join(f"`{name}`" for name in names) + ".\n")
    if command.epilog:
        parts.append(_prose(command.epilog))
    return "\n".join(parts)


def _flags(context: click.Context) -> dict[str, list[tuple[str, str]]]:
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            flags = ", ".join(f"`{flag}`" for flag in re.split(r", | / ", record[0]))
            sections.setdefault(getattr(parameter, "section", "Options"), []).append(
                (flags.replace("|", r"\|"), record[1])
            )
    return {heading: sections[heading] for heading in sorted(sections, key=lambda one: one != "Options")}


def _prose(text: str) -> str:
    """Return the help of a command as Markdown: what click leaves as it stands (`\\b`) becomes a block."""
    paragraphs = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            paragraphs.append("```text\n" + paragraph.removeprefix("\b").strip("\n") + "\n```")
        else:
            paragraphs.append(_escape(" ".join(paragraph.split())))
    return "\n\n".join(paragraphs) + "\n"


def _cell(text: str) -> str:
    return _escape(" ".join(text.split())).replace("|", r"\|")


def _escape(text: str) -> str:
    return re.sub(r"([<>\[\]*])", r"\\\1", text)
