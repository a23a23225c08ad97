"""Shared memory, and memory for the weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from omni_core.cli.checks.cores import CGROUP
from omni_core.cli.checks.cures import set_field
from omni_core.cli.checks.devices import device_type, number_of_workers
from omni_core.cli.checks.finding import Finding
from omni_core.cli.checks.model import folder_of
from omni_core.cli.checks.software import try_import
from omni_core.cli.checks.weights import parameters_in
from omni_core.config import OmniDiffusionConfig

_GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # looked at, not written to
# Less shared memory than this is what a container gets that nobody thought of; processes pass tensors through it.
_LEAST_SHARED_MEMORY = 256 * 2**20


def check_memory(config: OmniDiffusionConfig | None) -> Iterator[Finding]:
    """Look whether there is shared memory for worker processes, and memory for the weights in all of them."""
    yield from _shared_memory(SHARED_MEMORY)
    if config is not None:
        yield from _weights(config)


def memory_limit() -> tuple[int, str]:
    """Return how many bytes this process and its workers may use together, and what says so."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine has"
    limits = [machine]
    for file in (CGROUP / "memory.max", CGROUP / "memory" / "memory.limit_in_bytes"):  # version 2, version 1
        try:
            limits.append((int(file.read_text(encoding="ascii")), "this container may use"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits)


def _shared_memory(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        if folder.parent.is_dir() and Path("/proc/self").exists():  # Linux, where it belongs to the system
            cure = f"`mkdir -p {folder} && mount -t tmpfs -o size=2g tmpfs {folder}`, as root"
            yield Finding(str(folder), "warning", "missing: executors with worker processes may need it", cure)
        return
    total, _, free = shutil.disk_usage(folder)
    detail = f"{free / _GIB:.2f} GiB free of {total / _GIB:.2f}"
    if total < _LEAST_SHARED_MEMORY:
        cure = f"In a container: `docker run --shm-size=2g`; else, as root: `mount -o remount,size=2g {folder}`"
        yield Finding(str(folder), "warning", f"{detail}: executors with worker processes may need more", cure)
    elif free < _LEAST_SHARED_MEMORY:
        cure = f"Remove what was left there: `ls -lS {folder}`, then `rm` those files that no program uses"
        yield Finding(str(folder), "warning", f"{detail}: it is full of files", cure)
    else:
        yield Finding(str(folder), "ok", detail)


def _weights(config: OmniDiffusionConfig) -> Iterator[Finding]:
    torch, _ = try_import("torch")
    folder = folder_of(config)
    if torch is None or folder is None:
        return
    on_cpu = device_type(torch, config) == "cpu"
    try:
        parameters = parameters_in(folder)
    except OSError:  # told with the model
        return
    bytes_each = 4 if config.dtype == "float32" or (config.dtype == "auto" and on_cpu) else 2
    one = parameters * bytes_each
    if on_cpu:
        workers = number_of_workers(config)
        limit, says = memory_limit()
        what = f"{_size(one)} of weights in {workers} worker{'' if workers == 1 else 's'}"
        if one * workers > limit:
            yield Finding(
                "memory", "problem", f"{what}, and {says} {_size(limit)}", _memory_cure(config, one, bytes_each)
            )
        else:
            yield Finding("memory", "ok", f"{what}; {says} {_size(limit)}")
    elif torch.cuda.is_available() and config.offload == "none":
        limit = torch.cuda.get_device_properties(0).total_memory
        share = one // config.tensor_parallel_size
        if share > limit:
            detail = f"{_size(share)} of weights for a GPU with {_size(limit)}"
            yield Finding("memory", "problem", detail, set_field("offload", "model", config))


def _size(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB else f"{count / 2**20:.1f} MiB"


def _memory_cure(config: OmniDiffusionConfig, one: int, bytes_each: int) -> str:
    limit, says = memory_limit()
    fit = limit // (one * config.ranks_per_replica)
    if fit >= 1:
        return set_field("data_parallel_size", fit, config)
    more = (
        "a container with more memory (`docker run --memory`)" if "container" in says else "a machine with more memory"
    )
    if bytes_each == 4 and one * config.ranks_per_replica <= 2 * limit:
        return f"{set_field('dtype', 'bfloat16', config)} takes half; else a smaller model, or {more}"
    return f"A smaller model, or {more}"
