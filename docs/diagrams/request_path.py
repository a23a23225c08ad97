"""Runs two requests with the shipped model, records who calls whom, and draws their way through the code.

`python docs/diagrams/request_path.py` writes `request_path.svg` beside this file.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from svg import Svg

# Whose calls are drawn, from left to right: the classes that hand a request on.
LIFELINES = (
    "omni_core.engine.handle.RequestHandle",
    "omni_core.engine.engine.DiffusionEngine",
    "omni_core.engine.core.EngineCore",
    "omni_core.scheduler.Scheduler",
    "omni_core.executors.inline.InlineExecutor",
    "omni_core.worker.worker.DiffusionWorker",
    "omni_core.worker.model_runner.ModelRunner",
    "omni_core.worker.task.task.PipelineTask",
    "omni_core.worker.stacking.verify.VerifiedStacking",
    "omni_core.worker.stacking.plan.StackingPlan",
)
# What only looks, counts or is bookkeeping between two of them.
_LEFT_OUT = {
    "batch_deadline", "check_open", "done", "interrupt", "is_current", "is_ready", "past_events",
    "progress", "on_change", "request_id", "take_waiting", "add_done_callback", "_make_handle", "_notify",
    "add_progress", "_execute_step", "_refuse_engine_thread", "_check_process", "note_refusal",
}  # fmt: skip
# What the pipeline calls in place of a model.
_STAND_INS = {"call_denoiser", "call_autoencoder"}
_WIDTH, _LEFT, _ROW, _TOP = 1240, 128, 25, 66


@dataclass(frozen=True)
class Call:
    """A call of one lifeline by another, or in a thread that was handed the work.

    Attributes:
        thread: Name of the thread.
        caller: Lifeline of the caller; empty: somebody outside.
        callee: Lifeline of the callee.
        method: Name of the method.
        is_handed: Whether another thread has handed it over.
    """

    thread: str
    caller: str
    callee: str
    method: str
    is_handed: bool = False


class Recorder:
    """Notes each kind of call between lifelines once, in the order of their first."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Note a call; what `sys.setprofile` takes."""
        if event != "call":
            return
        callee, method = _lifeline(frame)
        if callee is None or method.startswith("__") or method in _LEFT_OUT:
            return
        if isinstance(getattr(_class(callee), method, None), property):
            return
        thread = threading.current_thread().name
        caller = self._caller(frame)
        # What a thread, or a request's own greenlet, does first for a request is what it was handed.
        is_handed = caller in ("", callee) and method in ("_accept", "_run", "_report_step")
        if caller == callee and not is_handed and method not in _STAND_INS:
            return
        call = Call(thread, caller, callee, method, is_handed)
        if call not in self.calls:
            self.calls.append(call)

    def _caller(self, frame: FrameType) -> str:
        back = frame.f_back
        while back is not None:
            lifeline, _ = _lifeline(back)
            if lifeline is not None:
                return lifeline
            back = back.f_back
        return ""


def _lifeline(frame: FrameType) -> tuple[str | None, str]:
    module = frame.f_globals.get("__name__", "")
    if not module.startswith("omni_core."):
        return None, ""
    qualified: str = frame.f_code.co_qualname  # type: ignore[attr-defined]  # from Python 3.11 on
    owner, _, method = qualified.rpartition(".")
    name = f"{module}.{owner}"
    return (name if name in LIFELINES else None), method


def _class(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    found: type = getattr(sys.modules[module], attribute)
    return found


def record() -> list[Call]:
    """Run two requests together and return the calls that brought them through."""
    recorder = Recorder()
    threading.setprofile(recorder)  # for the threads that the engine starts
    try:
        with DiffusionEngine(OmniDiffusionConfig()) as engine:
            recorder.calls.clear()
            requests = [OmniDiffusionRequest(prompt=prompt, seed=1) for prompt in ("a red seven", "a blue two")]
            sys.setprofile(recorder)
            handles = engine.submit_all(requests)
            sys.setprofile(None)
            ended = threading.Barrier(len(handles) + 1)
            for handle in handles:
                threading.Thread(target=lambda one=handle: (one.result(120), ended.wait(120))).start()
            ended.wait(120)
            sys.setprofile(recorder)
            for handle in handles:
                handle.result(0).raise_for_error()
            sys.setprofile(None)
            return [
                call for call in recorder.calls if call.thread in ("MainThread", "omni-engine", "omni-inline-worker")
            ]
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def draw(calls: list[Call], file: Path) -> None:
    """Draw the calls as a sequence diagram."""
    svg = Svg(_WIDTH, "The way of a request from submit to the forward pass and back")
    places = {name: _LEFT + index * 111 + 40 for index, name in enumerate(LIFELINES)}
    y, thread = _TOP, ""
    bands: list[tuple[float, str]] = []
    for call in calls:
        if call.thread != thread:
            thread = call.thread
            bands.append((y, thread))
            y += 14
        y += _ROW
    height = y + 24
    for index, (top, name) in enumerate(bands):
        bottom = bands[index + 1][0] if index + 1 < len(bands) else y + 10
        if index % 2 == 0:
            svg.box(0, top, _WIDTH, bottom - top, "band")
        svg.text(8, top + 18, "thread", "faint")
        svg.text(8, top + 32, "of the caller" if name == "MainThread" else name, "code")
    for index, (name, x) in enumerate(places.items()):
        short = name.rpartition(".")[2]
        svg.line(x, 46, x, height - 12, "life")
        svg.box(x - 56, 12 if index % 2 else 30, 112, 22)
        svg.text(x, 27 if index % 2 else 45, short, "code", anchor="middle", name=name)
    y, thread = _TOP, ""
    for call in calls:
        if call.thread != thread:
            thread = call.thread
            y += 14
        y += _ROW
        end = places[call.callee]
        start = end - 46 if call.caller in ("", call.callee) else places[call.caller]
        svg.arrow(start, end, y, "handed" if call.is_handed else "")
        right = end >= start
        svg.text(
            (start + 5) if right else (start - 5),
            y - 5,
            call.method,
            "code",
            anchor="start" if right else "end",
            name=f"{call.callee}.{call.method}",
        )
    svg.write(file, height)


if __name__ == "__main__":
    found = record()
    for one in found:
        print(f"{one.thread:20} {one.caller.rpartition('.')[2]:18} -> {one.callee.rpartition('.')[2]}.{one.method}")
    draw(found, Path(__file__).with_suffix(".svg"))
