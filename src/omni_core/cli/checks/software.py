"""Python and the packages that omni is built on."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
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
    """Look at Python, at packages that must work, and at those that may be there."""
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")
    for module in _IMPORTED:
        yield from _import_works(module)
    for module, (name, purpose, extra) in _OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            cure = f"If you need it: `pip install 'omni-core[{extra}]'`"
            yield Finding(name, "ok", f"not installed; it is for {purpose}. {cure}")
        else:
            yield Finding(name, "ok", f"{installed_version(module)}, for {purpose}")


def try_import(module: str) -> tuple[Any, BaseException | None]:
    """Return a module, or what its import raised. By name, since this layer does not depend on torch and diffusers."""
    try:
        return importlib.import_module(module), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a broken binary can raise anything
        return None, error


def _import_works(module: str) -> Iterator[Finding]:
    loaded, error = try_import(module)
    if error is not None:
        detail = f"cannot be imported: {type(error).__name__}: {error}"
        yield Finding(module, "problem", detail, _import_cure(module))
    elif module == "torch":
        yield Finding("torch", "ok", f"{loaded.__version__}, {_torch_build(loaded)}")
    else:
        yield Finding(module, "ok", installed_version(module))


def _import_cure(module: str) -> str:
    """Return what helps: another file of that name before it on sys.path is not cured by pip."""
    try:
        spec = importlib.util.find_spec(module)
        package = Path(str(importlib.metadata.distribution(module).locate_file(""))).resolve()
    except (ImportError, ValueError):
        spec, package = None, Path()
    if spec is not None and spec.origin is not None and package not in Path(spec.origin).resolve().parents:
        return f"Rename {spec.origin} or take it out of PYTHONPATH: it hides the package {module} in {package}"
    return f"`pip install --force-reinstall {module}`"


def _torch_build(torch: Any) -> str:
    if torch.version.cuda:
        return f"built for CUDA {torch.version.cuda}"
    return f"built for ROCm {torch.version.hip}" if torch.version.hip else "built for CPU"


def installed_version(name: str) -> str:
    """Return the version of a distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "version not known"
