"""`omni plugins new`: a complete distribution for a plugin, written from the templates beside this module."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import keyword
import os
import re
import secrets
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import omni_core
from omni_core.cli.app import registry_of
from omni_core.plugins.records import normalise

if TYPE_CHECKING:
    from omni_core.plugins import PluginRegistry

KINDS = ("executor", "observer", "pipeline-hook")
_PREFIXES = ("omni-exec-", "omni-")
_MOST_CHARACTERS = 30  # the lines of the templates have room for so many
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_NAME_RULE = (
    f"A name is up to {_MOST_CHARACTERS} lower-case letters a-z and digits, begins with a letter, and may have single "
    "hyphens between them, such as acme or my-cluster."
)
_AUTHOR = re.compile(r"(?P<name>[^<>]*[^<>\s])(\s*<(?P<email>[^<>@\s]+@[^<>@\s]+)>)?")


@click.command("new", short_help="Write a new plugin to start from.")
@click.argument("name")
@click.option(
    "kind",
    "--kind",
    type=click.Choice(KINDS),
    default=KINDS[0],
    show_default=True,
    help="What it is: another way to run the work, a watcher, or a change to the pipeline.",
)
@click.option(
    "output",
    "--output",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    default=Path(),
    metavar="FOLDER",
    help="Folder in which the plugin's own folder is made.  [default: this one]",
)
@click.option("author", "--author", metavar="'NAME <EMAIL>'", help="Who wrote it, for its metadata and licence.")
@click.pass_context
def new(context: click.Context, *, name: str, kind: str, output: Path, author: str | None) -> None:
    """Write a plugin called NAME, complete with tests, to start from.

    It makes a folder omni-exec-NAME for an executor, omni-NAME for another kind, which can be installed as it stands
    and passes its own tests. Nothing that exists is changed.
    """
    plugin = _Plugin(_short_name(name), kind)
    _refuse_taken(plugin, registry_of(context))
    folder = output / plugin.distribution
    if os.path.lexists(folder):
        raise click.UsageError(
            f"{folder} exists already, and nothing was changed. Choose another name or --output, or remove it."
        )
    files = render(plugin, _parse_author(author))
    try:
        _write(files, folder)
    except OSError as error:
        raise click.ClickException(
            f"{folder} could not be written: {error.strerror or error}. Nothing is left."
        ) from error
    click.echo(f"Wrote {len(files)} files to {folder}. Next:\n")
    for line in plugin.next_commands(output):
        click.echo(f"  {line}")


@dataclass(frozen=True, slots=True)
class _Plugin:
    """What the new plugin is called, in each place that has a name.

    Attributes:
        name: The short one: of the executor and of the entry point.
        kind: One of `KINDS`.
    """

    name: str
    kind: str

    @property
    def distribution(self) -> str:
        """What pip installs, and the folder."""
        return f"{_PREFIXES[0] if self.kind == 'executor' else _PREFIXES[1]}{self.name}"

    @property
    def module(self) -> str:
        """What Python imports."""
        return self.distribution.replace("-", "_")

    @property
    def class_name(self) -> str:
        """What the names of its classes begin with."""
        return "".join(part.capitalize() for part in self.name.split("-"))

    @property
    def variable(self) -> str:
        """What its environment variables begin with."""
        return self.name.replace("-", "_").upper()

    def next_commands(self, output: Path) -> list[str]:
        """Return three commands that install it and show that it works, ready to be copied."""
        # pip takes a name without a slash for one to look up in the index.
        folder = f"{output / self.distribution}" if output.is_absolute() else f"./{output / self.distribution}"
        install = f"pip install -e {shlex.quote(f'{folder}[test]')}"
        draw = 'omni generate "a blue two"'
        if self.kind == "executor":
            return [install, f"omni plugins check {self.name}", f"{draw} --executor-class {self.name}"]
        if self.kind == "observer":
            file = f"{self.name}.jsonl"
            return [install, f"{self.variable}_FILE={file} {draw}", f"cat {file}"]
        return [install, f"{draw} --seed 1", f"{self.variable}_SHIFT=8 {draw} --seed 1"]


def render(plugin: _Plugin, author: dict[str, str]) -> dict[Path, str]:
    """Return the files of a plugin, by their path within its folder.

    Args:
        plugin: What it is called.
        author: `name`, and `email` if known; empty for nobody in particular.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("omni_core.cli", "templates/plugin"),
        autoescape=False,  # noqa: S701  # what comes out is no HTML
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # A JSON string is also one of TOML.
    environment.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    values: dict[str, Any] = {
        "name": plugin.name,
        "kind": plugin.kind,
        "distribution": plugin.distribution,
        "module": plugin.module,
        "class_name": plugin.class_name,
        "variable": plugin.variable,
        "next_commands": plugin.next_commands(Path()),
        "author": author,
        "holder": author.get("name", f"the authors of {plugin.distribution}"),
        "year": datetime.date.today().year,
        "core_version": omni_core.__version__,
    }
    return {
        _path_of(template, plugin): environment.get_template(template).render(values)
        for template in environment.list_templates(extensions=["jinja"])
        if template.split("/")[0] in ("shared", plugin.kind)
    }


def _path_of(template: str, plugin: _Plugin) -> Path:
    """Return where a template's file goes; a name that begins with a dot is written `dot_` in the package."""
    parts = template.removesuffix(".jinja").split("/")[1:]
    names = [plugin.module if part == "MODULE" else re.sub("^dot_", ".", part) for part in parts]
    return Path(*names)


def _short_name(name: str) -> str:
    """Return what is left of a name without the prefixes of distributions.

    Raises:
        click.BadParameter: It cannot name a distribution, a module and an executor alike.
    """
    short = name.replace("_", "-")
    for prefix in _PREFIXES:
        if short.startswith(prefix):
            short = short.removeprefix(prefix)
            break
    if len(short) > _MOST_CHARACTERS or _NAME.fullmatch(short) is None:
        near = "-".join(re.findall(r"[a-z0-9]+", short.lower()))[:_MOST_CHARACTERS].strip("-").lstrip("0123456789-")
        suggestion = f" Perhaps {near}?" if near and near != short and not keyword.iskeyword(near) else ""
        raise _bad_name(f"{name!r} cannot name a plugin. {_NAME_RULE}{suggestion}")
    if keyword.iskeyword(short):
        raise _bad_name(f"{name!r} cannot name a plugin: {short!r} is a keyword of Python. {_NAME_RULE}")
    if short == "omni":
        raise _bad_name(f"{name!r} cannot name a plugin: variables that begin with OMNI_ are omni's own. {_NAME_RULE}")
    return short


def _refuse_taken(plugin: _Plugin, registry: PluginRegistry) -> None:
    """Refuse a name that would not be told apart from what is installed or what omni's classes are called.

    Raises:
        click.BadParameter: The name is taken.
    """
    for record in registry.records:
        names = [record.name, *(spec.name for spec in record.executors)]
        if plugin.name in map(normalise, names):
            raise _bad_name(f"{plugin.name!r} is taken by a plugin of {record.qualifier}; choose another name.")
    try:
        version = importlib.metadata.version(plugin.distribution)
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        raise _bad_name(f"{plugin.distribution} {version} is installed already; choose another name, or uninstall it.")
    class_name = f"{plugin.class_name}Executor"
    if plugin.kind == "executor" and class_name in omni_core.__all__:
        raise _bad_name(f"{plugin.name!r} would make a class {class_name}, which omni_core has; choose another name.")


def _bad_name(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="NAME")


def _parse_author(author: str | None) -> dict[str, str]:
    if author is None:
        return {}
    match = _AUTHOR.fullmatch(author.strip())
    if match is None or not author.isprintable():
        raise click.BadParameter(
            f"{author!r} is no author; write 'Ada Lovelace <ada@example.org>' or the name alone.", param_hint="--author"
        )
    return {key: value for key, value in match.groupdict().items() if value is not None}


def _write(files: dict[Path, str], folder: Path) -> None:
    """Write all files, or leave nothing behind."""
    temporary = folder.with_name(f".omni-{secrets.token_hex(8)}")
    try:
        for path, text in files.items():
            target = temporary / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
