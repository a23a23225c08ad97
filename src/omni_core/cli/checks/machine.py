"""Devices, cores, threads and shared memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omni_core.cli.checks.finding import Finding
from omni_core.cli.checks.software import try_import
from omni_core.config import OmniDiffusionConfig

_GIB = 2**30
# Less shared memory than this is what a container gets that nobody thought of; processes pass tensors through it.
_LEAST_SHARED_MEMORY = 256 * 2**20
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def check_machine(config: OmniDiffusionConfig | None) -> Iterator[Finding]:
    """Look at what the machine has, and at whether the configuration asks for more."""
    torch, _ = try_import("torch")
    if torch is not None:
        yield from _devices(torch, config)
    yield from _threads(torch, config)
    yield from _shared_memory(Path("/dev/shm"))  # noqa: S108  # looked at, not written to


def usable_cores() -> int:
    """Return how many cores this process may use, by affinity and by the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or the quota is "max"
        return cores


def _devices(torch: Any, config: OmniDiffusionConfig | None) -> Iterator[Finding]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB")
    elif torch.version.cuda:
        yield Finding(
            "cuda",
            "warning",
            "torch is built for CUDA and finds no device",
            "Check `nvidia-smi`, CUDA_VISIBLE_DEVICES and that the driver is new enough for this CUDA",
        )
    elif Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        yield Finding(
            "cuda",
            "warning",
            "there is an NVIDIA driver, but torch is built for CPU",
            "Install torch for CUDA: https://pytorch.org/get-started/locally",
        )
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple GPU")
    if config is None:
        return
    device = config.device
    if device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        yield Finding("device", "ok", f"auto: {found or 'cpu'}")
        return
    try:
        torch.empty(0, device=device)
    except Exception as error:  # each back end raises errors of its own
        reason = str(error).splitlines()[0]
        yield Finding("device", "problem", f"{device} cannot be used: {reason}", "Set device to auto or to one above")
    else:
        yield Finding("device", "ok", device)


def _threads(torch: Any, config: OmniDiffusionConfig | None) -> Iterator[Finding]:
    cores = usable_cores()
    found = []
    for variable in _THREAD_VARIABLES:
        first = os.environ.get(variable, "").split(",")[0].strip()
        if first.isdigit() and int(first) > cores:
            found.append(f"{variable}={first}")
    threads = torch.get_num_threads() if torch is not None else 1
    if not found and threads > cores:
        found.append(f"torch's {threads} threads")
    if config is not None and config.num_threads is not None and config.num_threads * config.data_parallel_size > cores:
        found.append(f"num_threads = {config.num_threads} in {config.data_parallel_size} replicas")
    if found:
        yield Finding(
            "cpu",
            "warning",
            f"{cores} cores, fewer than {' and '.join(found)}: forwards on the CPU can become many times slower",
            f"Set OMP_NUM_THREADS={cores} or less, or num_threads; all workers together need no more than {cores}",
        )
    else:
        yield Finding("cpu", "ok", f"{cores} usable cores; torch uses {threads}")


def _shared_memory(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        return
    total, _, free = shutil.disk_usage(folder)
    detail = f"{free / _GIB:.2f} GiB free of {total / _GIB:.2f}"
    if free < _LEAST_SHARED_MEMORY:
        yield Finding(
            str(folder),
            "warning",
            f"{detail}: executors with worker processes may need more",
            "In a container: docker run --shm-size=2g; else remove what was left there",
        )
    else:
        yield Finding(str(folder), "ok", detail)
