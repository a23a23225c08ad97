"""Where the values of a configuration come from: arguments, environment variables, a TOML file."""

from __future__ import annotations

import codecs
import contextvars
import io
import json
import os
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource, TomlConfigSettingsSource

from omni_core.errors import ConfigError, closest

DEFAULT_FILE = "omni.toml"
ENV_PREFIX = "OMNI_"
NESTED = "__"
# Environment variables with our prefix that are no fields of the configuration.
OTHER_ENVIRONMENT = frozenset(
    {
        "OMNI_PLUGINS_DISABLE",
        "OMNI_SERVE_API_KEY",
        "OMNI_METRICS_PORT",
        "OMNI_METRICS_FORWARDS",
        "OMNI_METRICS_PROMPTS",
    }
)

# The words of Python for what JSON writes true, false and null.
_PYTHON_WORDS = {"True": True, "False": False, "None": None}

# What each source of the configuration under construction provided, strongest first.
recorded: contextvars.ContextVar[list[tuple[str, dict[str, Any]]]] = contextvars.ContextVar("recorded")
file_to_read: contextvars.ContextVar[Path] = contextvars.ContextVar("file_to_read", default=Path(DEFAULT_FILE))
# A copy of a configuration is made of its own values alone.
is_copying: contextvars.ContextVar[bool] = contextvars.ContextVar("is_copying", default=False)

# A Service of Kubernetes called omni-model gives every container of its namespace these, and Docker's links do as well.
_SERVICE_NAMES = re.compile(
    r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$"
)
_SERVICE_VALUES = re.compile(
    r"(tcp|udp|sctp)://(\[[0-9a-f:.]+\]|[\w.-]+):\d+|\d+|(\d+\.){3}\d+|[0-9a-f]*:[0-9a-f:.]+|tcp|udp|sctp",
    re.IGNORECASE,
)


class Arguments(InitSettingsSource):
    """What the caller of the class gives."""

    def __call__(self) -> dict[str, Any]:
        """Return the values by field."""
        found = super().__call__()
        recorded.get().append(("argument", found))
        return found


class Environment(EnvSettingsSource):
    """Variables `OMNI_NAME`, and `OMNI_NAME__KEY` for one entry of a table."""

    def __call__(self) -> dict[str, Any]:
        """Return the values by field."""
        _refuse_contradictions(self.settings_cls.model_fields)
        found = super().__call__()
        for name in found:
            recorded.get().append((f"environment {ENV_PREFIX}{name.upper()}", {name: found[name]}))
        return found

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        """Return what the variables of one field say: a table, or text that the field's own validation reads."""
        # An environment file or a block of YAML easily leaves a blank or a line break at the end.
        text = value.strip() if isinstance(value, str) else ""
        entries = self.explode_env_vars(field_name, field, self.env_vars)
        variable = f"{ENV_PREFIX}{field_name.upper()}"
        if not _takes_table(field):
            if entries:
                raise _error(variable, f"is one value, not a table: {variable}{NESTED}* can set nothing.")
            return text or None
        if text and (text.startswith("{") or _takes_only_table(field)):
            return _merged(_parsed(variable, text, must_be_table=True), entries, variable)
        if text and entries:
            raise _error(variable, f"sets a value and {variable}{NESTED}* entries of a table: they exclude each other.")
        return text or entries or None

    def explode_env_vars(self, field_name: str, field: FieldInfo, env_vars: Mapping[str, str | None]) -> dict[str, Any]:
        """Return the table that the variables of single entries make: the rule for each is that of the flags."""
        prefix = f"{ENV_PREFIX}{field_name}{NESTED}".lower()
        table: dict[str, Any] = {}
        found = {name: text for name, text in env_vars.items() if name.startswith(prefix) and text and text.strip()}
        for name in sorted(found, key=lambda name: (name.count(NESTED), name)):  # a table before its own entries
            variable = name.upper()
            keys = name.removeprefix(prefix).split(NESTED)
            if not all(keys):
                raise _error(variable, f"names no entry: write {prefix.upper()}KEY.")
            value = _parsed(variable, found[name] or "")
            for key in reversed(keys):
                value = {key: value}
            table = _merged(table, value, variable)
        return table


class File(TomlConfigSettingsSource):
    """A TOML file."""

    def __init__(self, settings_cls: type[BaseSettings], path: Path) -> None:
        self._path = path
        if path.is_dir():
            raise ConfigError(f"The configuration file {path} cannot be read: it is a folder. Rename one of them.")
        if path.is_symlink() and not path.exists():
            raise ConfigError(f"The configuration file {path} cannot be read: it is a link to no file.")
        try:
            super().__init__(settings_cls, path)
        except (ValueError, OSError) as error:  # tomllib.TOMLDecodeError is a ValueError
            raise ConfigError(f"The configuration file {path} cannot be read: {error}{_line(path, error)}") from error

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        # Editors of Windows put a mark before the text, which TOML does not know.
        read: dict[str, Any] = super()._read_file(_WithoutMark(file_path))
        return read

    def __call__(self) -> dict[str, Any]:
        """Return the values by field."""
        found = super().__call__()
        recorded.get().append((f"file {self._path}", found))
        return found


class _WithoutMark:
    """A file of UTF-8 as it is without a byte order mark."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def open(self, mode: str) -> io.BytesIO:
        """Return what is in it, as bytes."""
        return io.BytesIO(self._path.read_bytes().removeprefix(codecs.BOM_UTF8))


def _line(path: Path, error: Exception) -> str:
    """Return the line that a fault of TOML names by its number, to be put behind that."""
    number = re.search(r"at line (\d+)", str(error))
    try:
        return f": {path.read_text(encoding='utf-8-sig').splitlines()[int(number[1]) - 1].strip()}" if number else ""
    except (OSError, ValueError, IndexError):
        return ""


def unknown_variables(fields: Mapping[str, FieldInfo], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the `OMNI_*` variables that are set and that mean nothing to omni, nor are of Kubernetes' making."""
    for name, value in environment.items():
        plain = name.upper()
        if not plain.startswith(ENV_PREFIX) or plain in OTHER_ENVIRONMENT or not value.strip():
            continue
        if plain.removeprefix(ENV_PREFIX).lower().split(NESTED)[0] in fields:
            continue
        if not (_SERVICE_NAMES.search(name) and _SERVICE_VALUES.fullmatch(value)):
            yield name


def nearest_variable(name: str, fields: Mapping[str, FieldInfo]) -> str | None:
    """Return the variable that was likely meant by one that means nothing, or None."""
    plain = name.upper().removeprefix(ENV_PREFIX).lower()
    head, nested, rest = plain.partition(NESTED)
    for field in fields:
        if plain.startswith(f"{field}_") and _takes_table(fields[field]):
            return f"{ENV_PREFIX}{field}{NESTED}{plain.removeprefix(field).lstrip('_')}".upper()
    near = closest(head, fields)
    if near is None:
        return None
    return f"{ENV_PREFIX}{near}{nested}{rest}".upper() if _takes_table(fields[near]) else f"{ENV_PREFIX}{near}".upper()


def refuse_misspelled_environment(fields: Mapping[str, FieldInfo]) -> None:
    """Raise for a variable that is nearly one of ours.

    Raises:
        ConfigError: There is one; the message names what was likely meant.
    """
    # Other software uses the prefix too (NVIDIA Omniverse), so only a near miss is an error.
    for name in sorted(unknown_variables(fields, os.environ)):
        near = nearest_variable(name, fields)
        if near is not None:
            raise ConfigError(
                f"The environment variable {name} sets no field of the configuration. "
                f"Did you mean {near}? Unset or rename {name}."
            )


def _refuse_contradictions(fields: Mapping[str, FieldInfo]) -> None:
    # Case does not matter in names of variables, so that one can be there twice.
    seen: dict[str, str] = {}
    for name, value in os.environ.items():
        plain = name.lower()
        if not plain.startswith(ENV_PREFIX.lower()) or not value.strip():
            continue
        if plain.removeprefix(ENV_PREFIX.lower()).split(NESTED)[0] not in fields:
            continue
        other = seen.setdefault(plain, name)
        if os.environ[other] != value:
            raise ConfigError(
                f"The environment variables {other} and {name} are the same one, with two values: unset one."
            )


def _parsed(variable: str, text: str, must_be_table: bool = False) -> Any:
    try:
        value = parse_value(text)
    except ValueError as error:
        raise _error(variable, f"cannot be read: {error}") from error
    if must_be_table and not isinstance(value, dict):
        one_entry = f"{variable}{NESTED}KEY=1 for one entry"
        raise _error(variable, f"= {text!r} is no table: write JSON, {variable}='{{\"key\": 1}}', or {one_entry}.")
    return value


def _error(variable: str, what: str) -> ConfigError:
    field = variable.removeprefix(ENV_PREFIX).lower().split(NESTED)[0]
    return ConfigError(f"{field}: the environment variable {variable} {what}")


def _merged(table: Mapping[str, Any], entries: Mapping[str, Any], variable: str) -> dict[str, Any]:
    """Return a table with entries put into it, at any depth."""
    result = dict(table)
    for key, value in entries.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            result[key] = _merged(before, value, variable)
        elif key in result and isinstance(before, dict) != isinstance(value, dict):
            raise _error(variable, f"contradicts another: {key!r} is a value in one of them, and a table in the other.")
        else:
            result[key] = value
    return result


def _takes_table(field: FieldInfo) -> bool:
    return any(get_origin(kind) is dict for kind in _kinds(field.annotation))


def _takes_only_table(field: FieldInfo) -> bool:
    return all(get_origin(kind) is dict for kind in _kinds(field.annotation))


def _kinds(annotation: Any) -> list[Any]:
    """Return the types that a field takes, without None and without what pydantic adds to them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for arm in get_args(annotation) for kind in _kinds(arm)]
    return [] if annotation is type(None) else [annotation]


def parse_value(text: str) -> Any:
    """Return what `text` means as JSON, or the text itself.

    Raises:
        ValueError: It begins like a JSON list, object or string, and is none.
    """
    if text.strip() in _PYTHON_WORDS:
        return _PYTHON_WORDS[text.strip()]
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{text[:20]}… is nested too deeply") from None
    except ValueError as error:
        if text.lstrip().startswith(("[", "{", '"')):
            raise ValueError(f"{text!r} begins like JSON and is not: {error}") from None
        return text
