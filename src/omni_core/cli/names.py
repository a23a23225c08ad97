"""What the files are called."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from omni_core.media.formats import ARRAYS, AUDIO, ENDINGS, PICTURES, VIDEOS

_FORMATS = "; ".join(
    f"{kind}: {', '.join(endings)}"
    for kind, endings in (("pictures", PICTURES), ("videos", VIDEOS), ("sound", AUDIO), ("arrays", ARRAYS))
)

_MOST_CHARACTERS = 60
# A file name has room for 255 bytes: the slug, the seed, two numbers, the ending, and what a temporary name adds.
_MOST_BYTES = 150
# Of a name given with `-o`: two numbers and another ending still fit.
_MOST_BYTES_OF_NAME = 230


def slug(text: str | None) -> str:
    """Return the letters and digits of `text` as part of a file name: lower case, joined by hyphens, never empty."""
    plain = unicodedata.normalize("NFKC", text or "").lower()
    words = re.findall(r"[^\W_]+", plain)
    short = "-".join(words)[:_MOST_CHARACTERS]
    short = short.encode("utf-8", "ignore")[:_MOST_BYTES].decode("utf-8", "ignore").strip("-")
    return short or "output"


@dataclass(frozen=True, slots=True)
class Target:
    """Where `-o` says that outputs go.

    Attributes:
        folder: The folder; made when the first file is written.
        stem: The name without its ending; None: made from prompt and seed.
        suffix: The ending as it was written; None: what fits the output.
    """

    folder: Path
    stem: str | None = None
    suffix: str | None = None

    @property
    def ending(self) -> str | None:
        """The ending, lower case: the format."""
        return None if self.suffix is None else self.suffix.lower()

    @classmethod
    def parse(cls, text: str | None) -> Target:
        """Read the value of `-o`.

        Raises:
            click.UsageError: Nothing can be written there, or the ending is of no format that omni writes.
        """
        try:
            target = cls._read(text)
            _refuse_unwritable(target)
        except OSError as error:  # a name that the file system refuses, a folder that may not be looked into
            raise click.UsageError(f"-o: {error.filename}: {error.strerror}.") from None
        return target

    @classmethod
    def _read(cls, text: str | None) -> Target:
        if text is None:
            return cls(Path())
        if not text:
            raise click.UsageError("-o needs the name of a file or a folder.")
        if text == "-":
            raise click.UsageError("-o -: omni writes files, not standard output; give the name of a file or a folder.")
        path = _path_of(text)
        if text.endswith(("/", os.sep)) or path.is_dir():
            return cls(path)
        if path.suffix.lower() not in ENDINGS:
            raise click.UsageError(
                f"-o {text}: the ending tells the format, and is one of these: {_FORMATS}. For a folder write {text}/"
            )
        return cls(path.parent, path.stem, path.suffix)


class FileNames:
    """Hands out a name for each output of a run, no name twice, the same whatever the order in which requests end.

    Files that are there already are replaced only where `-o` names the very file.

    Args:
        target: Where they go.
        prompts_and_seeds: Of each request.
    """

    def __init__(self, target: Target, prompts_and_seeds: Sequence[tuple[str | None, int]]) -> None:
        self._target = target
        self._taken: set[str] = set()
        if target.stem is None:
            stems = [f"{slug(prompt)}-{seed}" for prompt, seed in prompts_and_seeds]
        elif len(prompts_and_seeds) == 1:
            stems = [target.stem]
        else:
            width = len(str(len(prompts_and_seeds)))
            stems = [f"{target.stem}-{number:0{width}}" for number in range(1, len(prompts_and_seeds) + 1)]
        self._stems = _numbered_apart(stems)

    def named(self, count: int, ending: str) -> Path | None:
        """Return the path that `-o` names, if that is where the output goes; else None.

        Args:
            count: How many outputs the request has. Of several, none has the name: all are numbered.
            ending: The format of the output, with its dot. In another than that of the name it gets another name.
        """
        target = self._target
        if target.stem is None or count > 1 or len(self._stems) > 1 or ending != target.ending:
            return None
        return target.folder / f"{target.stem}{target.suffix}"

    def free(self, request: int, output: int, count: int, ending: str) -> Iterator[Path]:
        """Yield paths at which there is no file and that no other output of the run has. The first is to be taken.

        Args:
            request: Which request, from 0.
            output: Which of its outputs, from 0.
            count: How many it has.
            ending: With its dot.
        """
        stem = self._stems[request] if count == 1 else f"{self._stems[request]}-{output + 1:0{len(str(count))}}"
        for number in itertools.count(1):
            name = f"{stem}{ending}" if number == 1 else f"{stem}-{number}{ending}"
            path = self._target.folder / name
            if _same(name) not in self._taken and not os.path.lexists(path):
                self._taken.add(_same(name))
                yield path


def _numbered_apart(stems: list[str]) -> list[str]:
    apart: list[str] = []
    taken: set[str] = set()
    for stem in stems:
        numbered = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        name = next(name for name in numbered if _same(name) not in taken)
        taken.add(_same(name))
        apart.append(name)
    return apart


def _same(name: str) -> str:
    """Return what is equal for names that are one file where case does not count."""
    return unicodedata.normalize("NFC", name).casefold()


def _path_of(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~nobody
        raise click.UsageError(f"-o {text}: {error}") from None


def _refuse_unwritable(target: Target) -> None:
    there = target.folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise click.UsageError(f"-o: {there} is no folder.")
    if target.stem is not None:
        _refuse_file(target.folder / f"{target.stem}{target.suffix}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise click.UsageError(f"-o: nothing can be written in {there}: permission denied.")


def _refuse_file(path: Path) -> None:
    if len(os.fsencode(path.name)) > _MOST_BYTES_OF_NAME:
        raise click.UsageError(f"-o: the name of the file is too long; it has at most {_MOST_BYTES_OF_NAME} bytes.")
    if os.path.lexists(path) and not path.is_symlink() and not path.is_file():
        raise click.UsageError(f"-o: {path} is no ordinary file; it is left alone.")
