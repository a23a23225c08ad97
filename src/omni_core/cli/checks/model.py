"""The model that the configuration names."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import omni_core
from omni_core.cli.checks.cures import SetModel, set_field
from omni_core.cli.checks.finding import Finding
from omni_core.cli.checks.hub import check_hub, downloaded_to
from omni_core.cli.checks.software import try_import
from omni_core.cli.checks.weights import weight_problems
from omni_core.config import OmniDiffusionConfig
from omni_core.errors import closest

_IMPORT_PATH = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
_INDEX = "model_index.json"
_LAYOUT = "Set model to a folder that `pipeline.save_pretrained(folder)` wrote, a hub id owner/name, or pkg.mod:factory"
_COPY = "copy or download the model again"


def check_model(config: OmniDiffusionConfig) -> Iterator[Finding]:
    """Look at the model without loading its weights."""
    model = config.model
    if model is not None and _IMPORT_PATH.match(model):
        yield from _factory(model)
        return
    try:
        if model is not None and _is_hub_id(model):
            yield from check_hub(model)
        folder = folder_of(config)
        if folder is not None:
            yield from _folder(folder, config)
    except PermissionError as error:
        file = error.filename or model
        detail = f"{file} cannot be read: {error.strerror}"
        root = shlex.quote(str(model))
        yield Finding(
            "model", "problem", detail, f"`chmod -R a+rX {root}`, as its owner, and a+x for all folders above it"
        )


def folder_of(config: OmniDiffusionConfig) -> Path | None:
    """Return the folder where the model is or should be; None if it has none, or is not downloaded yet."""
    model = config.model
    if model is None:
        return Path(omni_core.__file__).parent / "models" / "digits"
    if _IMPORT_PATH.match(model):
        return None
    return downloaded_to(model) if _is_hub_id(model) else Path(model).expanduser()


def _is_hub_id(model: str) -> bool:
    return model.count("/") == 1 and not model.startswith((".", "/", "~")) and not _exists(Path(model))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder above it is closed to us, so there is something
        return True


def _folder(folder: Path, config: OmniDiffusionConfig) -> Iterator[Finding]:
    set_model = partial(set_field, "model", config=config)
    if not folder.is_dir():
        yield Finding("model", "problem", f"there is no folder {folder}", _near_folder(folder, set_model))
        return
    index = folder / _INDEX
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        components = {
            name: value for name, value in content.items() if name[0] != "_" and isinstance(value, list) and value[0]
        }
    except FileNotFoundError:
        cure = _inner_folder(folder, set_model)
        yield Finding("model", "problem", f"{folder} has no {_INDEX}: not in diffusers layout", cure)
        return
    except (ValueError, AttributeError, IndexError) as error:
        yield Finding("model", "problem", f"{index} cannot be read: {type(error).__name__}: {error}", _LAYOUT)
        return
    problems = [
        *_class_problems(content.get("_class_name"), config),
        *weight_problems(folder, components, _download(config), set_model),
    ]
    for problem, cure in problems:
        yield Finding("model", "problem", f"{folder}: {problem}", cure)
    if not problems:
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        yield Finding("model", "ok", f"{content.get('_class_name')} in {folder}, {size / 2**20:.1f} MiB of weights")


def _download(config: OmniDiffusionConfig) -> str:
    if config.model is None:
        return "it ships with omni, so `pip install --force-reinstall omni-core`"
    return f"`hf download {config.model}`" if _is_hub_id(config.model) else _COPY


def _near_folder(folder: Path, set_model: SetModel) -> str:
    parent = folder.parent
    names = [other.name for other in parent.iterdir() if other.is_dir()] if parent.is_dir() else []
    near = closest(folder.name, names)
    return f"{set_model(parent / near)}, if that was meant" if near else _LAYOUT


def _inner_folder(folder: Path, set_model: SetModel) -> str:
    # That of a hub's cache (models--owner--name/snapshots/…), or of an archive with a folder in it.
    inner = next(iter(sorted([*folder.glob(f"*/{_INDEX}"), *folder.glob(f"snapshots/*/{_INDEX}")])), None)
    return set_model(inner.parent) if inner is not None else _LAYOUT


def _class_problems(name: Any, config: OmniDiffusionConfig) -> Iterator[tuple[str, str]]:
    if isinstance(name, list):  # [module, class]: code that comes with the model
        if not config.trust_remote_code and not config.model_options.get("custom_pipeline"):
            yield (
                f"its pipeline {name[-1]} is code of its own, which runs only with trust_remote_code",
                f"Read {name[0]}.py in that folder; if you trust it: {set_field('trust_remote_code', True, config)}",
            )
        return
    if not isinstance(name, str):
        yield f"{_INDEX} has no _class_name", _LAYOUT
        return
    diffusers, _ = try_import("diffusers")
    if diffusers is None:
        return  # told with the software
    try:
        found = hasattr(diffusers, name)
    except Exception as error:  # the class is imported here, with whatever it needs
        yield (
            f"its class {name} cannot be imported: {type(error).__name__}: {error}",
            f"Install what it names; `python -c 'from diffusers import {name}'` shows all of it",
        )
        return
    if not found:
        yield (
            f"diffusers {diffusers.__version__} has no class {name}; a newer diffusers may have it",
            "`pip install --upgrade diffusers`",
        )


def _factory(path: str) -> Iterator[Finding]:
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module can raise anything
        yield Finding(
            "model",
            "problem",
            f"{path} cannot be imported: {type(error).__name__}: {error}",
            f"It must name a function in a module that Python finds: `export PYTHONPATH=FOLDER`, with the folder that "
            f"holds {module_name.partition('.')[0]}",
        )
        return
    if callable(found):
        yield Finding("model", "ok", f"{path}, a function that makes a pipeline (not called here)")
    else:
        yield Finding("model", "problem", f"{path} is a {type(found).__name__}", "Name a function or a class")
