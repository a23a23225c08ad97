"""Python and the packages that omni is built on."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator
from typing import Any

from omni_core.cli.checks.finding import Finding

DISTRIBUTION = "omni-core"
# Optional packages: their import name, what they are for, and the extra of omni-core that brings them.
_OPTIONAL = {
    "accelerate": ("accelerate", "weights that do not fit on the accelerator (`offload`)", "offload"),
    "av": ("PyAV", "videos as .mp4 and .webm; without it, animated .webp", "video"),
}
# Those that are imported to see that they work, and not only that they are installed.
_IMPORTED = ("torch", "diffusers", "transformers", "greenlet", "safetensors")


def check_software() -> Iterator[Finding]:
    """Look at Python, at what omni-core requires, and at what it can use."""
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield from _required()
    for module in _IMPORTED:
        yield from _import_works(module)
    for module, (name, purpose, extra) in _OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            cure = f"If you need it: pip install 'omni-core[{extra}]'"
            yield Finding(name, "ok", f"not installed; it is for {purpose}. {cure}")
        else:
            yield Finding(name, "ok", f"{_version(module)}, for {purpose}")


def try_import(module: str) -> tuple[Any, BaseException | None]:
    """Return a module, or what its import raised. By name, since this layer does not depend on torch and diffusers."""
    try:
        return importlib.import_module(module), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a broken binary can raise anything
        return None, error


def _required() -> Iterator[Finding]:
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            DISTRIBUTION,
            "problem",
            "not installed as a distribution, so that no plugin, not even its own, is found",
            "pip install omni-core, or pip install -e . in the repository",
        )
        return
    yield Finding(DISTRIBUTION, "ok", _version(DISTRIBUTION))
    packaging, _ = try_import("packaging.requirements")
    if packaging is None:  # it comes with huggingface_hub, whose absence is told below
        return
    for requirement in map(packaging.Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        cure = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(requirement.name, "problem", "not installed", cure)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, "problem", f"{version} is not {requirement.specifier}", cure)


def _import_works(module: str) -> Iterator[Finding]:
    loaded, error = try_import(module)
    if error is not None:
        yield Finding(
            module,
            "problem",
            f"cannot be imported: {type(error).__name__}: {error}",
            f"pip install --force-reinstall {module}",
        )
    elif module == "torch":
        yield Finding("torch", "ok", f"{loaded.__version__}, {_torch_build(loaded)}")
    else:
        yield Finding(module, "ok", _version(module))


def _torch_build(torch: Any) -> str:
    if torch.version.cuda:
        return f"built for CUDA {torch.version.cuda}"
    return f"built for ROCm {torch.version.hip}" if torch.version.hip else "built for CPU"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "version not known"
