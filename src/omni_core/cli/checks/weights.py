"""Files of weights: whether they are there, whole and safe to load, and how many parameters they hold."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from omni_core.cli.checks.cures import SetModel

_WITHOUT_SAFETY = (".bin", ".ckpt", ".pt", ".pth")
_LFS_POINTER = b"version https://git-lfs"


def weight_problems(
    folder: Path, components: Iterable[str], download: str, set_model: SetModel
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the weights in the folder of a model, each with its cure.

    Args:
        folder: The folder of the model.
        components: Names of the folders in it that should be there.
        download: How to get the files again.
        set_model: Says how to set another model.

    Raises:
        OSError: A file or a folder cannot be read.
    """
    pointers = [file for file in _files(folder) if _is_pointer(file)]
    if pointers:
        quoted = shlex.quote(str(folder))
        detail = f"{pointers[0].relative_to(folder)} is a Git LFS pointer and not the file itself"
        more = f", and so are {len(pointers) - 1} others" if len(pointers) > 1 else ""
        yield f"{detail}{more}", f"`git -C {quoted} lfs pull`, where it was cloned; or {download}"
    for name in components:
        part = folder / name
        if not part.is_dir():
            yield f"the folder {name} is missing", f"Get all of the model: {download}"
            continue
        weights = list(part.glob("*.safetensors"))
        unsafe = sorted(file.name for file in part.iterdir() if file.suffix in _WITHOUT_SAFETY)
        if unsafe and not weights:
            yield (
                f"{name} has {unsafe[0]} and no .safetensors, which is all that omni loads",
                _conversion(folder, set_model),
            )
        missing = sorted({shard for index in part.glob("*.safetensors.index.json") for shard in _missing_shards(index)})
        if missing:
            yield f"{name} lacks {', '.join(missing)}", f"Get all of the model: {download}"
        for file in weights:
            problem = None if file in pointers else _problem(file)
            if problem is not None:
                yield f"{name}/{file.name} ({file.stat().st_size} bytes) is not whole: {problem}", f"Again: {download}"


def parameters_in(folder: Path) -> int:
    """Return how many numbers the .safetensors files hold, by their headers; those that cannot be read count nothing.

    Of variants of the same weights (`x.safetensors`, `x.fp16.safetensors`) the largest counts.

    Raises:
        OSError: A folder cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    counts: dict[tuple[Path, str], int] = {}
    for file in _files(folder):
        if file.suffix != ".safetensors":
            continue
        try:
            with safe_open(file, "np") as opened:
                count = sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118
        except (OSError, SafetensorError):
            continue
        shard = "-" + file.name.partition("-")[2] if "-of-" in file.name else ""
        key = (file.parent, file.name.partition(".")[0].partition("-")[0] + shard)
        counts[key] = max(counts.get(key, 0), count)
    return sum(counts.values())


def _files(folder: Path) -> list[Path]:
    # Not rglob, which passes over a folder that may not be read as if it were empty.
    return sorted(
        Path(place) / name
        for place, _, names in os.walk(folder, onerror=_raise, followlinks=True)
        for name in names
        if ".git" not in Path(place).parts
    )


def _raise(error: OSError) -> NoReturn:
    raise error


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_LFS_POINTER)) == _LFS_POINTER


def _missing_shards(index: Path) -> list[str]:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return []  # diffusers says so when it loads it
    return [shard for shard in shards if not (index.parent / shard).exists()]


def _problem(file: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            opened.keys()
    except (OSError, SafetensorError) as error:
        return str(error)
    return None


def _conversion(folder: Path, set_model: SetModel) -> str:
    target = f"{folder}-safetensors"
    program = (
        f"from diffusers import DiffusionPipeline as P; "
        f"P.from_pretrained({str(folder)!r}, use_safetensors=False).save_pretrained({target!r})"
    )
    return f"If you trust who made them, convert them, `python -c {shlex.quote(program)}`, and then {set_model(target)}"
