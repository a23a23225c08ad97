"""Starts an engine on each executor, looks at the processes and threads that there are, and draws them.

`python docs/diagrams/processes.py` writes `processes.svg` beside this file. It needs both plugins and psutil.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from svg import Svg

CONFIGURATIONS = {
    "inline": OmniDiffusionConfig(),
    "multiproc": OmniDiffusionConfig(executor_class="multiproc", data_parallel_size=2),
    "torchrun": OmniDiffusionConfig(executor_class="torchrun", cfg_parallel_size=2),
}
_WIDTH, _ROW = 980, 19


@dataclass
class Process:
    """One process of an engine.

    Attributes:
        what: What it is for.
        threads: Names of its threads, where it can tell.
        channels: What connects it with the driver.
        children: The processes that it has started.
    """

    what: str
    threads: list[str] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)
    children: list[Process] = field(default_factory=list)


def record(config: OmniDiffusionConfig) -> tuple[str, Process]:
    """Return the executor's class and the processes that there are when it has run a request."""
    before = {thread.name for thread in threading.enumerate()}
    with DiffusionEngine(config) as engine:
        engine.step([OmniDiffusionRequest(prompt="a red seven", seed=1)], timeout=300)[0].raise_for_error()
        executor: Any = engine.executor
        ranks = {}
        if config.executor_class != "inline":
            pids = [pid for replica in executor.worker_pids() for pid in replica]
            threads = engine.collective_rpc(_thread_names, timeout=60)
            places = [(replica.index, worker.rank) for replica in executor._replicas for worker in replica.workers]
            workers = [worker for replica in executor._replicas for worker in replica.workers]
            channels = [[_describe(worker._work._socket), _describe(worker._control._socket)] for worker in workers]
            ranks = {
                pid: Process(f"worker: replica {place[0]}, rank {place[1]}", _plain(names), connections)
                for pid, place, names, connections in zip(pids, places, threads, channels, strict=True)
            }
        driver = Process("driver: your program", _plain(sorted(set(_thread_names(None)) - before)))
        driver.children = [_describe_tree(child, ranks) for child in psutil.Process().children()]
        return f"{type(executor).__module__}.{type(executor).__qualname__}", driver


def _describe_tree(process: psutil.Process, ranks: dict[int, Process]) -> Process:
    found = ranks.get(process.pid)
    if found is None:
        command = " ".join(process.cmdline())
        what = re.search(r"omni_exec_\w+\.\w+", command)
        found = Process(what[0] if what else command[:60])
    found.children = [_describe_tree(child, ranks) for child in process.children()]
    return found


def _thread_names(_worker: object) -> list[str]:
    return sorted(thread.name for thread in threading.enumerate())


def _plain(names: list[str]) -> list[str]:
    return sorted({name for name in names if name.startswith("omni-") or name == "MainThread"})


def _describe(socket: Any) -> str:
    return f"{socket.family.name} {socket.type.name}"


def draw(trees: dict[str, tuple[str, Process]], file: Path) -> None:
    """Draw a column for each executor."""
    svg = Svg(_WIDTH, "Processes and threads of each executor")
    column = _WIDTH / len(trees)
    bottoms = []
    for number, (name, (executor, driver)) in enumerate(trees.items()):
        left = number * column + 10
        svg.text(left, 26, f'executor_class="{name}"', "code strong")
        svg.text(left, 44, executor.rpartition(".")[2], "code faint", name=executor)
        bottoms.append(_draw_process(svg, driver, left, 58, column - 20))
    svg.write(file, max(bottoms) + 12)


def _draw_process(svg: Svg, process: Process, left: float, top: float, width: float) -> float:
    """Draw a process and those that it has started below it; return where the next may begin."""
    rows = [(name, "code") for name in process.threads]
    if process.channels:
        rows += [(f"{use}: {kind}", "faint") for use, kind in zip(("calls", "control"), process.channels, strict=True)]
    height = 26 + _ROW * len(rows)
    svg.box(left, top, width, height)
    is_module = process.what.startswith("omni_")
    svg.text(
        left + 8,
        top + 18,
        process.what,
        "code strong" if is_module else "strong",
        name=process.what if is_module else "",
    )
    for index, (text, kind) in enumerate(rows):
        svg.text(left + 20, top + 36 + index * _ROW, text, kind)
    y = top + height + 10
    for child in process.children:
        svg.line(left + 8, y + 13, left + 22, y + 13)
        bottom = _draw_process(svg, child, left + 22, y, width - 22)
        svg.line(left + 8, top + height, left + 8, y + 13)
        y = bottom
    return y


if __name__ == "__main__":
    found = {name: record(config) for name, config in CONFIGURATIONS.items()}
    for tree in found.values():
        print(tree)
    draw(found, Path(__file__).with_suffix(".svg"))
