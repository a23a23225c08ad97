"""What the files are called."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

# What each kind of output can be written as.
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = (".mp4", ".webm", ".webp", ".gif")
AUDIO = (".wav",)
ARRAYS = (".npz", ".safetensors")
ENDINGS = tuple(dict.fromkeys((*PICTURES, *VIDEOS, *AUDIO, *ARRAYS)))

_MOST_CHARACTERS = 60
# A file name has room for 255 bytes: the slug, the seed, two numbers, the ending, and what a temporary name adds.
_MOST_BYTES = 150


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
        ending: The ending, lower case; None: what fits the output.
    """

    folder: Path
    stem: str | None = None
    ending: str | None = None

    @classmethod
    def parse(cls, text: str | None) -> Target:
        """Read the value of `-o`.

        Raises:
            click.UsageError: Nothing can be written there, or the ending is of no format that omni writes.
        """
        if text is None:
            target = cls(Path())
        elif not text:
            raise click.UsageError("-o needs the name of a file or a folder.")
        elif text.endswith(("/", os.sep)) or Path(text).expanduser().is_dir():
            target = cls(Path(text).expanduser())
        else:
            path = Path(text).expanduser()
            if path.suffix.lower() not in ENDINGS:
                raise click.UsageError(
                    f"-o {text}: the ending tells the format: {', '.join(ENDINGS)}. For a folder write {text}/"
                )
            target = cls(path.parent, path.stem, path.suffix.lower())
        _refuse_unwritable(target.folder)
        return target


class FileNames:
    """Hands out a name for each output of a run, no name twice, the same whatever the order in which requests end.

    Files of earlier runs are replaced only where `-o` names the file.

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

    def name(self, request: int, output: int, count: int, ending: str) -> Path:
        """Return a path that no other output of the run has.

        Args:
            request: Which request, from 0.
            output: Which of its outputs, from 0.
            count: How many it has.
            ending: With its dot.
        """
        stem = self._stems[request] if count == 1 else f"{self._stems[request]}-{output + 1:0{len(str(count))}}"
        candidate, number = stem, 1
        while self._is_taken(f"{candidate}{ending}"):
            number += 1
            candidate = f"{stem}-{number}"
        self._taken.add(_same(f"{candidate}{ending}"))
        return self._target.folder / f"{candidate}{ending}"

    def _is_taken(self, name: str) -> bool:
        if _same(name) in self._taken:
            return True
        return self._target.stem is None and (self._target.folder / name).exists()


def _numbered_apart(stems: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    apart = []
    for stem in stems:
        seen[stem] = seen.get(stem, 0) + 1
        apart.append(stem if seen[stem] == 1 else f"{stem}-{seen[stem]}")
    return apart


def _same(name: str) -> str:
    """Return what is equal for names that are one file where case does not count."""
    return unicodedata.normalize("NFC", name).casefold()


def _refuse_unwritable(folder: Path) -> None:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise click.UsageError(f"-o: {there} is no folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise click.UsageError(f"-o: nothing can be written in {there}: permission denied.")
