"""Faults of the engine's own, and callbacks that wait where they must not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from omni_core import (
    DiffusionEngine,
    OmniDiffusionConfig,
    OmniDiffusionRequest,
    OmniRequestOutput,
    PluginRegistry,
    hookimpl,
)
from omni_core.engine.core import EngineCore
from omni_core.engine.handle import RequestEvent, RequestHandle
from omni_core.engine.notices import Notices
from omni_core.engine.step_ends import StepEnds
from omni_core.errors import EngineDeadError, EngineError
from omni_core.executors.inline import InlineExecutor
from omni_core.scheduler import Scheduler
from omni_core.testing.fake_worker import FakeWorker

PATIENCE_S = 20.0
# Where a fault is put: what the engine's thread calls in each of its jobs.
PLACES: dict[str, tuple[type, str]] = {
    "taking a request up": (Scheduler, "add_request"),
    "scheduling": (Scheduler, "schedule"),
    "the end of a step": (Scheduler, "update_from_output"),
    "ending early": (Scheduler, "end_request"),
    "a time limit": (EngineCore, "_expire"),
    "telling an end": (Notices, "ended"),
    "a start": (Notices, "started"),
}


class FakeInline(InlineExecutor):
    """The inline executor with a worker that needs no torch."""

    def _make_worker(self) -> None:
        self._worker = FakeWorker(self.config)


def make_engine(**options: Any) -> DiffusionEngine:
    return DiffusionEngine(OmniDiffusionConfig(executor_class=FakeInline), **options)


def ask(seed: int = 1, **fields: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(seed=seed, **{"num_inference_steps": 3, **fields})


@pytest.mark.parametrize("error", [OverflowError("too large"), SystemExit(3)], ids=["Exception", "SystemExit"])
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_in_one_message_ends_what_runs_and_later_requests_are_served(
    place: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = PLACES[place]
    original: Callable[..., Any] = getattr(owner, name)
    faults = iter([error])

    def faulty(*args: Any, **kwargs: Any) -> Any:
        if (fault := next(faults, None)) is not None:
            raise fault
        return original(*args, **kwargs)

    with make_engine() as engine:
        assert engine.step([ask(1)], PATIENCE_S)[0].images == [1]
        monkeypatch.setattr(owner, name, faulty)
        handles = [engine.submit(ask(seed, num_inference_steps=30, timeout_s=10)) for seed in range(3)]
        handles[0].abort()
        ends = [handle.result(PATIENCE_S) for handle in handles]
        assert next(faults, None) is None, "the fault has happened"
        for end in ends:
            assert end.finish_reason in ("finished", "aborted") or "fault of the engine's own" in str(end.error)
        assert [engine.step([ask(seed)], PATIENCE_S)[0].images for seed in (4, 5)] == [[4], [5]]
        engine.check_health()
        stats = engine.stats()
        assert (stats.waiting, stats.running, stats.parked) == (0, 0, 0)


def test_a_request_that_is_submitted_again_after_a_fault_is_not_taken_for_the_one_that_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = ask(7, num_inference_steps=30)
    original = StepEnds.done
    with make_engine() as engine:
        handle = engine.submit(again)
        assert next(event for event in handle.events() if event.kind == "step").step == 1

        def faulty(core: StepEnds, *args: Any) -> None:
            monkeypatch.setattr(StepEnds, "done", original)
            raise OverflowError("once")

        monkeypatch.setattr(StepEnds, "done", faulty)
        assert "Try again" in str(handle.result(PATIENCE_S).error)
        steps = []
        second = engine.submit(again)
        second.subscribe(lambda event: steps.append(event.step) if event.kind == "step" else None)
        assert second.result(PATIENCE_S).images == [7]
        assert steps == list(range(1, 31))


def test_faults_without_end_stop_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: Any, **__: Any) -> Any:
        raise OverflowError("again")

    with make_engine() as engine:
        monkeypatch.setattr(EngineCore, "_dispatch", faulty)
        handle = engine.submit(ask())
        assert "fault of the engine's own" in str(handle.result(PATIENCE_S).error)
        engine._core._thread.join(PATIENCE_S)
        with pytest.raises(EngineDeadError, match="OverflowError: again"):
            engine.submit(ask())


WAITS: dict[str, Callable[[DiffusionEngine, Any], object]] = {
    "result": lambda engine, other: other.result(PATIENCE_S),
    "events": lambda engine, other: list(other.events()),
    "step": lambda engine, other: engine.step([ask()]),
    "check_health": lambda engine, other: engine.check_health(),
}


@pytest.mark.parametrize("what", WAITS)
@pytest.mark.parametrize("where", ["done callback", "listener", "observer"])
def test_who_waits_in_the_engines_thread_is_told_so(what: str, where: str) -> None:
    raised: list[BaseException] = []

    def wait(_: Any = None) -> None:
        try:
            WAITS[what](engine, other)
        except BaseException as error:
            raised.append(error)

    class Observer:
        @hookimpl
        def omni_request_finished(self, output: Any) -> None:
            wait()

    plugins = PluginRegistry()
    if where == "observer":
        plugins.register(Observer(), name="observer")
    with make_engine(plugins=plugins) as engine:
        other = engine.submit(ask(num_inference_steps=100_000))
        handle = engine.submit(ask())
        if where == "done callback":
            handle.add_done_callback(wait)
        elif where == "listener":
            handle.subscribe(lambda event: wait() if event.kind == "finished" else None)
        handle.result(PATIENCE_S)
        engine.step([ask()], PATIENCE_S)
        other.abort()
        other.result(PATIENCE_S)
    assert raised
    assert {type(error) for error in raised} == {EngineError}
    assert "(in an observer or a callback)" in str(raised[0])


CALLS_IN_A_PIPELINE: dict[str, tuple[Callable[[DiffusionEngine, Any], object], str]] = {
    "step": (lambda engine, other: engine.step([picture(3)]), "EngineError: engine.step() waits"),
    "result": (lambda engine, other: other.result(), "EngineError: handle.result() waits"),
    "events": (lambda engine, other: list(other.events()), "EngineError: handle.events() waits"),
    "sleep(2)": (lambda engine, other: engine.sleep(2), "sleep(level=2) was called by a request that runs"),
    "check_health": (lambda engine, other: engine.check_health(), ""),
    "stats": (lambda engine, other: engine.stats(), ""),
    "a call": (lambda engine, other: engine.collective_rpc("check_health"), ""),
    "abort": (lambda engine, other: other.abort(), ""),
    "submit": (lambda engine, other: engine.submit(picture(3)), ""),
}


def picture(seed: int, **fields: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(prompt="a", seed=seed, num_inference_steps=4, height=32, width=32, **fields)


@pytest.mark.parametrize("what", CALLS_IN_A_PIPELINE)
def test_a_callback_of_a_pipeline_that_waits_is_told_so_and_holds_up_nobody(what: str) -> None:
    call, refusal = CALLS_IN_A_PIPELINE[what]
    others: list[RequestHandle] = []

    def callback(_pipeline: Any, step: int, _timestep: Any, kwargs: Any) -> Any:
        if step == 1:
            call(engine, others[0])
        return kwargs

    model = "omni_core.testing.pipelines:picture"
    with DiffusionEngine(OmniDiffusionConfig(model=model, log_level="error")) as engine:
        [wanted] = engine.step([picture(1)], PATIENCE_S)
        others += engine.submit_all([picture(1), picture(2, extra_args={"callback_on_step_end": callback})])
        ends = [handle.result(PATIENCE_S) for handle in others]
        assert (refusal in str(ends[1].error)) if refusal else ends[1].finish_reason == "finished", ends[1].error
        if what != "abort":
            assert np.array_equal(np.asarray(ends[0].images[0]), np.asarray(wanted.images[0]))
        assert engine.step([picture(1)], PATIENCE_S)[0].finish_reason == "finished"


def test_another_engine_may_be_waited_for_in_a_callback() -> None:
    found: list[Any] = []
    with make_engine() as first, make_engine() as second:
        handle = first.submit(ask(3))
        handle.add_done_callback(lambda done: found.append(second.step([ask(done.result().images[0] + 1)])[0].images))
        handle.result(PATIENCE_S)
        first.step([ask()], PATIENCE_S)
    assert found == [[4]]


def test_a_result_that_is_there_may_be_asked_for_anywhere() -> None:
    found: list[Any] = []
    with make_engine() as engine:
        handle = engine.submit(ask(7))
        handle.add_done_callback(lambda done: found.extend([done.result().images, len(list(done.events()))]))
        handle.result(PATIENCE_S)
        engine.step([ask()], PATIENCE_S)
    assert found[0] == [7]
    assert found[1] >= 3


def test_closing_in_a_signal_handler_while_closing() -> None:
    closed: list[bool] = []
    began = threading.Event()

    class Slow(FakeInline):
        def shutdown(self) -> None:
            began.set()
            signal.raise_signal(signal.SIGUSR1)
            super().shutdown()

    engine = DiffusionEngine(OmniDiffusionConfig(executor_class=Slow))
    before = signal.signal(signal.SIGUSR1, lambda *_: (engine.close(), closed.append(True)))
    try:
        engine.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert began.is_set()
    assert closed == [True]


def test_a_handle_keeps_the_last_previews() -> None:
    handle = RequestHandle(ask(), lambda request_id: None)
    seen: list[Any] = []
    handle.subscribe(lambda event: seen.append(event.preview))
    for step in range(1, 30):
        handle._add_event(RequestEvent("step", handle.request_id, step, 29, preview=f"picture {step}"))
    handle._finish(OmniRequestOutput(handle.request_id, 1, "finished"))
    assert seen == [*(f"picture {step}" for step in range(1, 30)), None], "who follows it sees all"
    kept = [event.preview for event in handle.events()]
    assert kept == [*[None] * 21, *(f"picture {step}" for step in range(22, 30)), None]
