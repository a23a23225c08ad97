"""`--extra-args KEY=VALUE`: values as JSON, as text, or from a file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from omni_core.config_sources import parse_value

PICTURE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One `KEY=VALUE`, with the file that the value was loaded from, if it was."""

    key: str
    value: Any
    file: str | None = None


class KeyValueType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer clicks
    """Click's view of `KEY=VALUE`."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> KeyValue:
        """Parse one value, and load the file that it names."""
        if isinstance(value, KeyValue):
            return value
        try:
            return parse_key_value(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_key_value(text: str) -> KeyValue:
    """Parse `KEY=VALUE`.

    A value is read as JSON where it is JSON, else taken as text; `@FILE` loads a picture, a .json or a .txt file. Text
    that begins with `@`, `[`, `{` or a quotation mark is written as a JSON string: `KEY='"@home"'`.

    Raises:
        ValueError: There is no key, the file cannot be loaded, or the value begins like JSON and is none.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise ValueError(f"{text!r} has no '='; write KEY=VALUE")
    if not key.isidentifier():
        raise ValueError(f"{key!r} before the '=' is not the name of an argument")
    if value.startswith("@"):
        return KeyValue(key, load_file(value[1:]), value)
    return KeyValue(key, parse_value(value))


def load_file(name: str) -> Any:
    """Return the content of a picture (as `PIL.Image.Image` in RGB), a .json or a .txt file.

    Raises:
        ValueError: There is no such file, it cannot be read, or its kind is not known.
    """
    path = Path(name).expanduser()
    ending = path.suffix.lower()
    if ending not in PICTURE_ENDINGS | {".json", ".txt"}:
        known = ", ".join(sorted(PICTURE_ENDINGS))
        raise ValueError(f"@{name}: give a picture ({known}), a .json or a .txt file")
    try:
        if ending == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        if ending == ".txt":
            return path.read_text(encoding="utf-8").rstrip("\n")
        return _load_picture(path)
    except FileNotFoundError:
        raise ValueError(f"@{name}: there is no such file") from None
    except (OSError, ValueError, SyntaxError) as error:  # PIL raises SyntaxError for some broken files
        raise ValueError(f"@{name} cannot be read: {error}") from None


def _load_picture(path: Path) -> Any:
    from PIL import Image, ImageOps

    with Image.open(path) as picture:
        # As diffusers.utils.load_image does: upright, and without alpha or palette.
        return ImageOps.exif_transpose(picture).convert("RGB")


def as_table(pairs: Iterable[KeyValue], flag: str) -> dict[str, Any]:
    """Return the values by key. A key that comes several times with files is a list of what they hold.

    Raises:
        click.UsageError: A key comes twice.
    """
    table: dict[str, Any] = {}
    from_files: dict[str, int] = {}
    for pair in pairs:
        if pair.key not in table:
            table[pair.key] = pair.value
            from_files[pair.key] = 1 if pair.file is not None else 0
        elif pair.file is not None and from_files[pair.key]:
            before = [table[pair.key]] if from_files[pair.key] == 1 else table[pair.key]
            table[pair.key] = [*before, pair.value]
            from_files[pair.key] += 1
        else:
            raise click.UsageError(f"{flag} sets {pair.key!r} twice; a list is written {flag} '{pair.key}=[1, 2]'.")
    return table


def files_of(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Return, for each key that was loaded from files, the `@FILE` or a list of them, as the user wrote it."""
    files: dict[str, list[str]] = {}
    for pair in pairs:
        if pair.file is not None:
            files.setdefault(pair.key, []).append(pair.file)
    return {key: names[0] if len(names) == 1 else names for key, names in files.items()}
