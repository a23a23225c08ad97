"""Kills a worker while a request runs on it, notes what everybody hears and when, and draws that.

`python docs/diagrams/failure.py` writes `failure.svg` beside this file. It needs the plugin omni-exec-multiproc.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omni_core import (
    DiffusionEngine,
    OmniDiffusionConfig,
    OmniDiffusionRequest,
    PluginRegistry,
    RequestHandle,
    hookimpl,
)
from svg import Svg

_STEPS, _KILLED_AT = 120, 30
_LANES = ("worker of replica 0", "observers", "request a, on replica 0", "request b, on replica 1")
_WIDTH, _LEFT, _LANE, _TOP = 1000, 190, 76, 10


@dataclass(frozen=True)
class Happening:
    """Something that somebody heard of.

    Attributes:
        at: Seconds since the worker was killed.
        lane: Index of who heard of it.
        text: What it was.
        name: Its full name in the code, if it has one there.
    """

    at: float
    lane: int
    text: str
    name: str = ""


class Watcher:
    """Notes what the engine tells its observers."""

    def __init__(self, note: Any) -> None:
        self._note = note

    @hookimpl
    def omni_worker_died(self, replica: int, rank: int) -> None:
        """Note it."""
        self._note(1, "omni_worker_died", "omni_core.hookspecs.omni_worker_died")

    @hookimpl
    def omni_worker_restarted(self, replica: int, rank: int) -> None:
        """Note it."""
        self._note(1, "omni_worker_restarted", "omni_core.hookspecs.omni_worker_restarted")


def record() -> list[Happening]:
    """Run two requests on two replicas, kill one of the workers, and return what happened from then on."""
    noted: list[tuple[float, int, str, str]] = []

    def note(lane: int, text: str, name: str = "") -> None:
        noted.append((time.monotonic(), lane, text, name))

    plugins = PluginRegistry()
    plugins.register(Watcher(note))
    config = OmniDiffusionConfig(executor_class="multiproc", data_parallel_size=2)
    with DiffusionEngine(config, plugins=plugins) as engine:
        far_enough = threading.Event()
        requests = [
            OmniDiffusionRequest(prompt="a red seven", seed=seed, num_inference_steps=_STEPS) for seed in (1, 2)
        ]
        handles = engine.submit_all(requests)
        victim = _wait_for_replica(handles, far_enough, engine)
        order = [victim, next(one for one in handles if one is not victim)]
        for lane, handle in enumerate(order, start=2):
            handle.subscribe(partial(_note_event, note, lane))
        [[pid], _] = engine.executor.worker_pids()
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        note(0, "SIGKILL")
        for handle in handles:
            handle.result(120).raise_for_error()
        deadline = time.monotonic() + 60
        while not any("restarted" in text for _, _, text, _ in noted) and time.monotonic() < deadline:
            far_enough.wait(0.01)
    return [Happening(round(at - killed_at, 3), lane, text, name) for at, lane, text, name in noted if at >= killed_at]


def _note_event(note: Any, lane: int, event: Any) -> None:
    name = "omni_core.engine.handle.RequestEvent"
    if event.kind == "step":
        if event.step in (1, _STEPS) or event.step % 10 == 0:
            note(lane, f"step {event.step}" if event.step in (1, _STEPS) else "", name)
    else:
        note(lane, event.kind, name)


def _wait_for_replica(handles: list[RequestHandle], tick: threading.Event, engine: DiffusionEngine) -> RequestHandle:
    """Return the request that replica 0 works on, once both are on their way."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        steps = [max((event.step for event in handle.past_events()), default=0) for handle in handles]
        if min(steps) >= 1 and max(steps) >= _KILLED_AT:
            ids = [set(ids) for ids in _requests_by_replica(engine)]
            return next(handle for handle in handles if handle.request_id in ids[0])
        tick.wait(0.005)
    raise TimeoutError("the requests do not move on")


def _requests_by_replica(engine: DiffusionEngine) -> list[list[str]]:
    found: list[list[str]] = engine.collective_rpc(lambda worker: list(worker._runner._tasks), timeout=60)
    return found


def draw(happenings: list[Happening], file: Path) -> None:
    """Draw a lane for each who heard of something, and time from left to right."""
    svg = Svg(_WIDTH, "What is heard of a worker that is killed, by whom and when")
    last = max(one.at for one in happenings)
    scale = (_WIDTH - _LEFT - 160) / last
    height = _TOP + len(_LANES) * _LANE + 30
    for lane, who in enumerate(_LANES):
        if lane % 2 == 0:
            svg.box(0, _TOP + lane * _LANE, _WIDTH, _LANE, "band")
        svg.text(10, _TOP + lane * _LANE + 30, who, "strong")
        svg.line(_LEFT, _TOP + lane * _LANE + 26, _WIDTH - 20, _TOP + lane * _LANE + 26, "life")
    svg.line(_LEFT, _TOP, _LEFT, height - 30, "hot")
    ends: dict[tuple[int, int], float] = {}
    for one in sorted(happenings, key=lambda one: one.at):
        x, y = _LEFT + max(0.0, one.at) * scale, _TOP + one.lane * _LANE + 26
        svg.dot(x, y)
        if not one.text:
            continue
        label = f"{one.text}  +{one.at * 1000:.0f} ms" if one.at > 0.0005 else one.text
        row = next(row for row in range(20) if ends.get((one.lane, row), 0.0) <= x)
        ends[one.lane, row] = x + 7.2 * len(label) + 8
        svg.text(x, y + 18 + 14 * row, label, "code", name=one.name)
    for tenth in range(int(last * 10) + 1):
        if tenth % max(1, round(last)) == 0:
            x = _LEFT + tenth / 10 * scale
            svg.text(x, height - 10, f"{tenth / 10:g} s", "faint", anchor="middle")
            svg.line(x, height - 30, x, height - 24)
    svg.write(file, height)


if __name__ == "__main__":
    found = record()
    for happening in found:
        print(happening)
    draw(found, Path(__file__).with_suffix(".svg"))
