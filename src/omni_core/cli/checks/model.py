"""The model that the configuration names."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import omni_core
from omni_core.cli.checks.finding import Finding
from omni_core.cli.checks.software import try_import
from omni_core.config import OmniDiffusionConfig

_IMPORT_PATH = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
_WEIGHTS_WITHOUT_SAFETY = (".bin", ".ckpt", ".pt", ".pth")


def check_model(config: OmniDiffusionConfig) -> Iterator[Finding]:
    """Look at the model without loading its weights."""
    model = config.model
    if model is None:
        folder = Path(omni_core.__file__).parent / "models" / "digits"
        yield from _folder(folder, config, "It ships with omni: pip install --force-reinstall omni-core")
    elif _IMPORT_PATH.match(model):
        yield from _factory(model)
    elif Path(model).expanduser().exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        cure = "Set model to a folder that pipeline.save_pretrained wrote, a hub id owner/name, or pkg.mod:factory"
        yield from _folder(Path(model).expanduser(), config, cure)
    else:
        yield _hub(model)


def _folder(folder: Path, config: OmniDiffusionConfig, cure: str) -> Iterator[Finding]:
    if not folder.is_dir():
        yield Finding("model", "problem", f"there is no folder {folder}", cure)
        return
    index = folder / "model_index.json"
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        components = {
            name: value for name, value in content.items() if name[0] != "_" and isinstance(value, list) and value[0]
        }
    except FileNotFoundError:
        yield Finding("model", "problem", f"{folder} has no model_index.json: not in diffusers layout", cure)
        return
    except (OSError, ValueError, AttributeError, IndexError) as error:
        yield Finding("model", "problem", f"{index} cannot be read: {type(error).__name__}: {error}", cure)
        return
    problems = [
        *_class_problems(content.get("_class_name"), config),
        *(f"the folder {name} is missing" for name in components if not (folder / name).is_dir()),
        *_weight_problems(folder, components),
    ]
    for problem in problems:
        yield Finding("model", "problem", f"{folder}: {problem}", cure)
    if not problems:
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        yield Finding("model", "ok", f"{content.get('_class_name')} in {folder}, {size / 2**20:.1f} MiB of weights")


def _class_problems(name: Any, config: OmniDiffusionConfig) -> Iterator[str]:
    if isinstance(name, list):  # [module, class]: code that comes with the model
        if not config.trust_remote_code and not config.model_options.get("custom_pipeline"):
            yield f"its pipeline {name[-1]} is code of its own, which runs only with trust_remote_code"
        return
    if not isinstance(name, str):
        yield "model_index.json has no _class_name"
        return
    diffusers, _ = try_import("diffusers")
    if diffusers is None:
        return  # reported with the software
    try:
        found = hasattr(diffusers, name)
    except Exception as error:  # the class is imported here, with whatever it needs
        yield f"its class {name} cannot be imported: {type(error).__name__}: {error}"
        return
    if not found:
        yield f"diffusers {diffusers.__version__} has no class {name}; a newer diffusers may have it"


def _weight_problems(folder: Path, components: dict[str, Any]) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    for name in components:
        files = list((folder / name).glob("*")) if (folder / name).is_dir() else []
        unsafe = [file.name for file in files if file.suffix in _WEIGHTS_WITHOUT_SAFETY]
        weights = [file for file in files if file.suffix == ".safetensors"]
        if unsafe and not weights:
            yield f"{name} has {unsafe[0]} and no .safetensors, which is all that omni loads"
        for file in weights:
            try:
                with safe_open(file, "np") as opened:
                    opened.keys()
            except (OSError, SafetensorError) as error:
                size = file.stat().st_size
                yield f"{name}/{file.name} ({size} bytes) is not whole, or a Git LFS pointer: {error}"


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
            "It must name a function in a module that Python finds; check PYTHONPATH",
        )
        return
    if callable(found):
        yield Finding("model", "ok", f"{path}, a function that makes a pipeline (not called here)")
    else:
        yield Finding("model", "problem", f"{path} is a {type(found).__name__}", "Name a function or a class")


def _hub(model: str) -> Finding:
    hub, error = try_import("huggingface_hub")
    if hub is None:
        return Finding("model", "problem", f"huggingface_hub: {error}", "pip install huggingface_hub")
    try:
        cached = hub.try_to_load_from_cache(model, "model_index.json")
    except Exception as problem:  # HFValidationError and its kin
        return Finding("model", "problem", f"{model}: {problem}", "Set model to a hub id owner/name or a folder")
    if isinstance(cached, str):
        return Finding("model", "ok", f"{model}, downloaded to {Path(cached).parent}")
    if hub.constants.HF_HUB_OFFLINE:
        return Finding(
            "model", "problem", f"{model} is not downloaded and HF_HUB_OFFLINE is set", "Unset HF_HUB_OFFLINE"
        )
    return Finding(
        "model", "warning", f"{model} is not downloaded yet", f"Downloaded at first use, or: hf download {model}"
    )
