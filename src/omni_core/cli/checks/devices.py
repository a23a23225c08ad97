"""GPUs: the driver, torch's build, the device that is selected, and how many ranks want one."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omni_core.cli.checks.cures import set_field
from omni_core.cli.checks.finding import Finding
from omni_core.cli.checks.software import try_import
from omni_core.config import OmniDiffusionConfig

_GIB = 2**30
_CPU_INFO = Path("/proc/cpuinfo")
# What a processor calls it that it computes with 16 bits itself; without, each operation is taken apart in software.
_FAST = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fphp"),
}


def check_devices(config: OmniDiffusionConfig | None) -> Iterator[Finding]:
    """Look at the accelerators, and at whether the configuration asks for one that is not there."""
    torch, _ = try_import("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB")
    else:
        yield from _no_cuda(torch)
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple GPU")
    if config is not None:
        yield from _selected(torch, config)


def device_type(torch: Any, config: OmniDiffusionConfig) -> str:
    """Return the kind of device that `device` means here: cpu, cuda, mps, …"""
    if config.device != "auto":
        return config.device.partition(":")[0]
    return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"


def number_of_workers(config: OmniDiffusionConfig) -> int:
    """Return how many ranks all replicas have together."""
    return config.data_parallel_size * config.ranks_per_replica


def _no_cuda(torch: Any) -> Iterator[Finding]:
    gpu, driver_cuda = _ask_driver()
    built_for = torch.version.cuda
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if built_for is None:
        if gpu and not torch.version.hip:
            version = torch.__version__.partition("+")[0]
            cure = f"`pip install --force-reinstall --index-url https://pypi.org/simple torch=={version}`"
            others = "other builds: https://pytorch.org/get-started/locally"
            detail = "there is an NVIDIA GPU, but torch is built for CPU"
            yield Finding("cuda", "warning", detail, f"{cure}; {others}")
    elif hidden is not None and (not hidden or hidden.startswith("-")):
        detail = f"CUDA_VISIBLE_DEVICES={hidden!r} hides all GPUs"
        yield Finding("cuda", "warning", detail, "`unset CUDA_VISIBLE_DEVICES`")
    elif driver_cuda is not None and int(driver_cuda.partition(".")[0]) < int(built_for.partition(".")[0]):
        yield Finding(
            "cuda",
            "warning",
            f"torch is built for CUDA {built_for}, and the NVIDIA driver knows CUDA up to {driver_cuda}",
            f"Install a driver for CUDA {built_for}, or torch for CUDA {driver_cuda} or older: "
            "https://pytorch.org/get-started/locally",
        )
    elif gpu:
        detail = "`nvidia-smi` lists a GPU, and torch finds none"
        cure = "`python -c 'import torch; torch.cuda.init()'` says why; in a container: `docker run --gpus all`"
        yield Finding("cuda", "warning", detail, cure)
    else:
        detail = f"torch is built for CUDA {built_for}, and there is no NVIDIA GPU here"
        yield Finding("cuda", "warning", detail, "`nvidia-smi` must list it; in a container: `docker run --gpus all`")


def _ask_driver() -> tuple[bool, str | None]:
    """Return whether the driver has a GPU, and the CUDA that it supports. Not by torch, which may not know it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return Path("/proc/driver/nvidia/version").exists(), None
    try:
        asked = subprocess.run([command], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False, None
    version = re.search(r"CUDA Version:\s*([\d.]+)", asked.stdout)
    return asked.returncode == 0, version.group(1) if version else None


def _selected(torch: Any, config: OmniDiffusionConfig) -> Iterator[Finding]:
    device, kind = config.device, device_type(torch, config)
    try:
        torch.empty(0, device=kind if device == "auto" else device)
    except Exception as error:  # each back end raises errors of its own
        reason = str(error).splitlines()[0]
        cure = f"{set_field('device', 'auto', config)}, or one of those above"
        yield Finding("device", "problem", f"{device} cannot be used: {reason}", cure)
        return
    yield Finding("device", "ok", f"auto: {kind}" if device == "auto" else device)
    workers = number_of_workers(config)
    if kind == "cuda" and workers > torch.cuda.device_count():
        yield Finding(
            "device",
            "warning",
            f"{workers} ranks for {torch.cuda.device_count()} GPUs, if all are on this machine",
            f"Set data_parallel_size and the parallel degrees so that their product is {torch.cuda.device_count()} or "
            "less, or add nodes",
        )
    yield from _offload(kind, config)
    if kind == "cpu" and config.dtype in _FAST and not _has_instructions(_FAST[config.dtype]):
        yield Finding(
            "dtype",
            "warning",
            f"{config.dtype} on a processor without instructions for it can be many times slower than float32",
            set_field("dtype", "float32", config),
        )


def _offload(kind: str, config: OmniDiffusionConfig) -> Iterator[Finding]:
    if config.offload == "none":
        return
    if kind == "cpu":
        detail = f"offload = {config.offload!r} moves weights to an accelerator, and the device is the CPU"
        yield Finding("offload", "problem", detail, f"{set_field('offload', 'none', config)}, or choose another device")
    elif importlib.util.find_spec("accelerate") is None:
        detail = f"offload = {config.offload!r} needs accelerate, which is not installed"
        yield Finding("offload", "problem", detail, "`pip install 'omni-core[offload]'`")


def _has_instructions(names: tuple[str, ...]) -> bool:
    try:
        return not set(names).isdisjoint(_CPU_INFO.read_text(encoding="utf-8").split())
    except OSError:  # not Linux: not known, so nothing to complain of
        return True
