"""Processor cores, and the threads that would share them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from omni_core.cli.checks.cures import set_field
from omni_core.cli.checks.devices import device_type, number_of_workers
from omni_core.cli.checks.finding import Finding
from omni_core.cli.checks.software import try_import
from omni_core.config import OmniDiffusionConfig

CGROUP = Path("/sys/fs/cgroup")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def usable_cores() -> int:
    """Return how many cores this process may use, by affinity and by the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or the quota is "max"
        return cores


def check_cores(config: OmniDiffusionConfig | None) -> Iterator[Finding]:
    """Look whether the threads of all workers together are more than the cores."""
    torch, _ = try_import("torch")
    cores = usable_cores()
    threads, origin = _threads_per_worker(config)
    if threads is None:
        threads = torch.get_num_threads() if torch is not None else 1
        origin = f"torch's {threads} threads"
    # Where nothing is set, executors share the cores out among their workers themselves.
    on_cpu = config is not None and torch is not None and device_type(torch, config) == "cpu"
    workers = number_of_workers(config) if config is not None and on_cpu else 1
    is_set = not origin.startswith("torch")
    if threads > cores or (is_set and threads * workers > cores) or workers > cores:
        what = origin if workers == 1 else f"{origin} in {workers} workers" if is_set else f"{workers} workers"
        detail = f"{cores} usable cores, fewer than {what}: forwards on the CPU can become many times slower"
        yield Finding("cpu", "warning", detail, _cure(config, cores, workers))
    else:
        yield Finding("cpu", "ok", f"{cores} usable cores; {origin}")


def _cure(config: OmniDiffusionConfig | None, cores: int, workers: int) -> str:
    if workers > cores:
        return f"Set data_parallel_size and the parallel degrees so that their product is {cores} or less"
    share = max(1, cores // workers)
    if config is not None and config.num_threads is not None:
        return set_field("num_threads", share, config)
    return f"`export OMP_NUM_THREADS={share} MKL_NUM_THREADS={share}`"


def _threads_per_worker(config: OmniDiffusionConfig | None) -> tuple[int | None, str]:
    if config is not None and config.num_threads is not None:
        return config.num_threads, f"num_threads = {config.num_threads}"
    found = {}
    for variable in _THREAD_VARIABLES:
        first = os.environ.get(variable, "").split(",")[0].strip()
        if first.isdigit():
            found[variable] = int(first)
    if not found:
        return None, ""
    variable = max(found, key=lambda name: found[name])
    return found[variable], f"{variable}={found[variable]}"
