"""Command-line flags made from the fields of the configuration and of a request."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from omni_core.cli.values import KeyValueType, as_table
from omni_core.config import OmniDiffusionConfig
from omni_core.request import OmniDiffusionRequest
from omni_core.validation import nearest_option

CONFIG_SECTION = "Configuration (each is also a variable OMNI_NAME and a line of omni.toml; see `omni config`)"
REQUEST_SECTION = "Request"

# Second names of flags.
_ALIASES = {"num_outputs_per_prompt": ("--num-images", "-n"), "num_inference_steps": ("--steps",)}
# The prompts are arguments, each request gets an id of its own, previews show on no command line, and metadata are for
# plugins of servers.
_NO_FLAGS = frozenset({"prompt", "request_id", "preview_every", "previews", "metadata"})


class SectionOption(click.Option):
    """A flag with a place in the help.

    Attributes:
        section: The heading that it stands under.
    """

    def __init__(self, *args: Any, section: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.section = section


class FieldOption(SectionOption):
    """A flag that sets a field, or the table that a field can be instead of one value.

    Attributes:
        field: Name of the field.
        is_table: Whether it takes `KEY=VALUE`s.
    """

    def __init__(self, *args: Any, field: str, is_table: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.field = field
        self.is_table = is_table


class NamedChoice(click.Choice):  # type: ignore[type-arg]  # generic only in newer clicks
    """One of several words; for another word, the message names the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the word that was chosen."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            near = nearest_option(value, list(self.choices))
            if near is None:
                raise
            self.fail(f"{error.message} Did you mean {near!r}?", param, ctx)


class SectionedCommand(click.Command):
    """A command whose help lists its flags under one heading for each section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for heading in sorted(sections, key=["Options", REQUEST_SECTION, CONFIG_SECTION].index):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])


def config_options() -> list[click.Parameter]:
    """Return the flags of the configuration, `--config FILE` first."""
    file = SectionOption(
        ["config_file", "--config"],
        section=CONFIG_SECTION,
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help="Read the configuration from this file instead of omni.toml.",
    )
    return [file, *_options(OmniDiffusionConfig, CONFIG_SECTION)]


def request_options() -> list[click.Parameter]:
    """Return the flags of a request."""
    return [*_options(OmniDiffusionRequest, REQUEST_SECTION)]


def config_from(command: click.Command, values: Mapping[str, Any]) -> OmniDiffusionConfig:
    """Return the configuration that flags, environment and file give.

    Raises:
        ConfigError: A value is impossible, or the file cannot be read.
        click.UsageError: Flags contradict each other.
    """
    given = given_fields(command.params, values, CONFIG_SECTION)
    file = values.get("config_file")
    return OmniDiffusionConfig(**given) if file is None else OmniDiffusionConfig.from_file(file, **given)


def given_fields(parameters: Sequence[click.Parameter], values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Return the fields of one section that flags set, by name.

    Args:
        parameters: The command's parameters.
        values: What click parsed, by parameter.
        section: Which of the sections.

    Raises:
        click.UsageError: A field is set as a value and as a table.
    """
    fields: dict[str, Any] = {}
    for option in parameters:
        if not isinstance(option, FieldOption) or option.section != section:
            continue
        value = values.get(option.name or "")
        if value is None or value == ():
            continue
        if option.is_table:
            value = as_table(value, option.opts[-1])
        if option.field in fields:
            raise click.UsageError(f"{option.opts[-1]} and --{_dashed(option.field)} exclude each other.")
        fields[option.field] = value
    return fields


def _options(model: type[BaseModel], section: str) -> list[FieldOption]:
    return [
        option
        for name, field in model.model_fields.items()
        if name not in _NO_FLAGS
        for option in _options_of_field(name, field, section)
    ]


def _options_of_field(name: str, field: FieldInfo, section: str) -> Iterable[FieldOption]:
    kinds = _kinds(field.annotation)
    values = [kind for kind in kinds if get_origin(kind) is not dict]
    tables = [kind for kind in kinds if get_origin(kind) is dict]
    description = field.description or ""
    if values:
        flag = f"--{_dashed(name)}"
        settings: dict[str, Any] = {"type": _click_type(values[0])}
        if values[0] is bool:
            flag, settings = f"{flag}/--no-{_dashed(name)}", {}
        yield FieldOption(
            [name, *_ALIASES.get(name, ()), flag],
            section=section,
            field=name,
            default=None,
            help=description + _default_text(field),
            **settings,
        )
    if tables:
        # A field that is a value or a table, such as `compile`, has a second flag for the table.
        suffix = "_options" if values else ""
        help_text = f"The same as a table, instead of --{_dashed(name)}." if values else description
        if not values:
            help_text += " VALUE is JSON or text, or @FILE (a picture, .json, .txt)." if name == "extra_args" else ""
            help_text += " May be repeated."
        yield FieldOption(
            [name + suffix, f"--{_dashed(name + suffix)}"],
            section=section,
            field=name,
            is_table=True,
            multiple=True,
            type=KeyValueType(),
            help=help_text,
        )


def _kinds(annotation: Any) -> list[Any]:
    """Return the types that a field takes, without None and without what pydantic adds to them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for arm in get_args(annotation) for kind in _kinds(arm)]
    return [] if annotation is type(None) else [annotation]


def _click_type(kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return NamedChoice(list(get_args(kind)))
    return {int: click.INT, float: click.FLOAT}.get(kind, click.STRING)


def _default_text(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined or default is None or isinstance(default, bool):
        return ""
    return f"  [default: {default:g}]" if isinstance(default, (int, float)) else f"  [default: {default}]"


def _dashed(name: str) -> str:
    return name.replace("_", "-")
