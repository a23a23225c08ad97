"""Building the pipeline that `model` names, ready to run."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omni_core.config import OmniDiffusionConfig
from omni_core.engine_place import loading
from omni_core.errors import ConfigError, ModelLoadError, OmniError
from omni_core.hookspecs import Hooks
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import checked_defaults
from omni_core.worker.pipeline.denoisers import find_denoisers
from omni_core.worker.pipeline.hub_failure import explain_hub_failure
from omni_core.worker.pipeline.step_cache import enable_cache
from omni_core.worker.pipeline.stock_arguments import (
    ignored_names,
    names_in_kwargs,
    output_types,
    sides_go_together,
    size_multiple,
    strength_rule,
)

SMALL_MODEL = Path(__file__).parents[2] / "models" / "digits"
REQUEST_DEFAULTS_FILE = "request_defaults.json"
_IMPORT_PATH = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")


@dataclass(slots=True)
class LoadedPipeline:
    """A pipeline on its device, what can be told of it without it, and the plugins that take part in its requests."""

    pipeline: Any
    info: PipelineInfo
    device: torch.device
    is_offloaded: bool = False
    hooks: Hooks | None = None


def load_pipeline(
    config: OmniDiffusionConfig, given: Any = None, hooks: Hooks | None = None, worker: Any = None
) -> LoadedPipeline:
    """Build the pipeline, move it to its device and prepare it as the configuration says.

    Args:
        config: What to load and how.
        given: A pipeline object to use instead of loading `config.model`. It stays where it is unless `device` or
            `dtype` say otherwise.
        hooks: Plugins to tell (`omni_pipeline_loaded`).
        worker: The worker that loads, handed on to the plugins.

    Raises:
        ModelLoadError: There is no such model, or building it failed; the message names the cause.
        ConfigError: The model or device cannot do what the configuration asks for.
    """
    with loading(f"model = {config.model!r}"):
        return _load(config, given, hooks, worker)


def _load(config: OmniDiffusionConfig, given: Any, hooks: Hooks | None, worker: Any) -> LoadedPipeline:
    device = resolve_device(config.device, given)
    defaults: dict[str, Any] = {}
    if given is not None:
        pipeline, model = given, type(given).__name__
        if config.model is not None:
            raise ConfigError(f"A pipeline object was given and model = {config.model!r} is set too: choose one.")
    else:
        model = config.model or str(SMALL_MODEL)
        if _IMPORT_PATH.match(model):
            pipeline = _call_factory(model, config)
        else:
            pipeline = _from_pretrained(model, config, resolve_dtype(config.dtype, device))
            defaults = _folder_defaults(Path(model))
        model = config.model or "omni/digits"
    if not callable(pipeline):
        raise ModelLoadError(f"{model} gave a {type(pipeline).__name__}, which is not a pipeline: it cannot be called.")
    _prepare(pipeline, config, device)
    if hooks is not None:
        hooks.call_strict("omni_pipeline_loaded", pipeline=pipeline, worker=worker)
    for module in _modules(pipeline).values():
        module.eval()  # dropout left on would make every picture differ
    # None stands for no default, over one of the model's folder.
    defaults = {name: value for name, value in (defaults | config.request_defaults).items() if value is not None}
    info = describe(pipeline, model, defaults, device)
    return LoadedPipeline(pipeline, info, device, config.offload != "none", hooks)


def resolve_device(name: str, given: Any = None) -> torch.device:
    """Return the device that `name` means; `auto` is the given pipeline's, else the accelerator, else the CPU.

    Raises:
        ConfigError: There is no such device here.
    """
    if name == "auto":
        if given is not None:
            device = getattr(given, "device", None)
            return device if isinstance(device, torch.device) else torch.device("cpu")
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device = {name!r} cannot be used here: {reason} `omni doctor` lists the devices."
        ) from error
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the precision that `name` means on `device`."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def describe(pipeline: Any, model: str, defaults: dict[str, Any], device: torch.device) -> PipelineInfo:
    """Return what `pipeline` takes.

    Raises:
        ConfigError: `defaults` holds something that it does not take.
    """
    parameters = [
        parameter for name, parameter in inspect.signature(type(pipeline).__call__).parameters.items() if name != "self"
    ]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    has_kwargs = any(p.kind is p.VAR_KEYWORD for p in parameters)
    further = names_in_kwargs(pipeline) if has_kwargs else []
    dtypes = [parameter.dtype for module in find_denoisers(pipeline).values() for parameter in module.parameters()]
    return PipelineInfo(
        class_name=type(pipeline).__name__,
        model=model,
        parameters=tuple(dict.fromkeys([*(p.name for p in named), *(further or ())])),
        required=tuple(p.name for p in named if p.default is p.empty),
        accepts_any=further is None,
        defaults=defaults,
        device=str(device),
        dtype=str(dtypes[0] if dtypes else torch.float32).removeprefix("torch."),
        ignored=tuple(ignored_names(pipeline)),
        components=tuple(getattr(pipeline, "components", None) or ()),
        output_types=output_types(pipeline),
        size_multiple=size_multiple(pipeline),
        sides_go_together=sides_go_together(pipeline),
        own_defaults={p.name: p.default for p in named if type(p.default) in (int, float)},
        strength_rule=strength_rule(pipeline),
    )


def _from_pretrained(model: str, config: OmniDiffusionConfig, dtype: torch.dtype) -> Any:
    folder = Path(model)
    looks_like_path = model.startswith((".", "/", "~")) or folder.exists() or model.count("/") != 1
    if looks_like_path:
        folder = folder.expanduser()
        if not folder.is_dir():
            raise ModelLoadError(
                f"There is no model at {model}: give a folder in diffusers layout, a hub id owner/name, "
                "or an import path pkg.mod:factory."
            )
        if not (folder / "model_index.json").is_file():
            raise ModelLoadError(
                f"The folder {model} holds no model_index.json, so it is not in diffusers layout. "
                "Save a pipeline there with pipeline.save_pretrained(folder)."
            )
    from diffusers import DiffusionPipeline

    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if config.trust_remote_code:
        options["trust_remote_code"] = True
    options.update(config.model_options)
    try:
        return DiffusionPipeline.from_pretrained(str(folder) if looks_like_path else model, **options)
    except Exception as error:
        reason = None if looks_like_path else explain_hub_failure(model, options, error)
        raise ModelLoadError(f"Loading {model} failed: {reason or f'{type(error).__name__}: {error}'}") from error


def _call_factory(path: str, config: OmniDiffusionConfig) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        factory: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except OmniError as error:
        raise ModelLoadError(f"model = {path!r} cannot be imported: {error.message}") from error
    except Exception as error:
        raise ModelLoadError(
            f"model = {path!r} cannot be imported: {type(error).__name__}: {error}. "
            "It must name a function that returns a pipeline, in a module that Python finds."
        ) from error
    options = dict(config.model_options)
    if "config" in inspect.signature(factory).parameters:
        options["config"] = config
    try:
        return factory(**options)
    except OmniError:
        raise
    except Exception as error:
        raise ModelLoadError(f"The factory {path} raised {type(error).__name__}: {error}") from error


def _folder_defaults(folder: Path) -> dict[str, Any]:
    file = folder.expanduser() / REQUEST_DEFAULTS_FILE
    if not file.is_file():
        return {}
    try:
        defaults = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(defaults, dict):
        raise ModelLoadError(f"{file} must hold one JSON object: argument names and values.")
    try:
        return checked_defaults(defaults)
    except ValueError as error:
        raise ModelLoadError(f"{file} is wrong: {error}.") from error


def _prepare(pipeline: Any, config: OmniDiffusionConfig, device: torch.device) -> None:
    def attempt(what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            raise ConfigError(
                f"{what} cannot be done for {type(pipeline).__name__} on {device}: {type(error).__name__}: {error}"
            ) from error

    if config.offload != "none":
        if device.type == "cpu":
            raise ConfigError(f"offload = {config.offload!r} needs an accelerator; this worker computes on the CPU.")
        attempt(f"offload = {config.offload!r}", lambda: _offload(pipeline, config.offload, device))
    elif hasattr(pipeline, "to"):
        dtype = None if config.dtype == "auto" else resolve_dtype(config.dtype, device)
        attempt("moving the pipeline", lambda: pipeline.to(device) if dtype is None else pipeline.to(device, dtype))
    denoisers = find_denoisers(pipeline)
    if config.attention_backend is not None:
        for name, module in denoisers.items():
            set_backend = functools.partial(_set_attention_backend, module, config.attention_backend)
            attempt(f"attention_backend = {config.attention_backend!r} for {name}", set_backend)
    if config.cache is not None:
        enable_cache(pipeline, denoisers, config.cache)
    if config.compile:
        options = config.compile if isinstance(config.compile, dict) else {}
        for name, module in denoisers.items():
            attempt(f"compile for {name}", functools.partial(module.compile, **options))


def _set_attention_backend(module: Any, name: str) -> None:
    module.set_attention_backend(name)


def _offload(pipeline: Any, kind: str, device: torch.device) -> None:
    if kind == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif kind == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(onload_device=device, offload_type="leaf_level")


def _modules(pipeline: Any) -> dict[str, torch.nn.Module]:
    components = getattr(pipeline, "components", None)
    values = components if isinstance(components, dict) else vars(pipeline)
    return {name: value for name, value in values.items() if isinstance(value, torch.nn.Module)}
