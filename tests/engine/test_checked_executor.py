"""Whatever an executor answers: the engine lives, who is affected is told which method it was, and others go on."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tampering import Tampered, executor_of, make_engine
from omni_core import (
    DiffusionEngine,
    DiffusionExecutor,
    OmniDiffusionConfig,
    OmniDiffusionRequest,
    OmniRequestOutput,
)
from omni_core.errors import (
    ContractError,
    ExecutorError,
    OmniError,
    PipelineError,
    RPCError,
    StartupError,
    WorkerDiedError,
)
from omni_core.outputs import ForwardReport, RequestMetrics, StepOutput, StepProgress
from omni_core.testing.fake_worker import FakeWorker

PATIENCE_S = 20.0


class Panic(BaseException):
    """What is no Exception."""


@pytest.fixture(scope="module")
def engine() -> Iterator[DiffusionEngine]:
    with make_engine() as made:
        made.collective_rpc("interrupt", non_block=True).result(30)  # its thread is there from the beginning
        yield made


@pytest.fixture(autouse=True)
def _mend(engine: DiffusionEngine) -> Iterator[None]:
    yield
    executor_of(engine).tamper = None


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit(4)


def raises(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


def ask(name: str, seed: int = 0, **fields: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(request_id=name, seed=seed, **{"num_inference_steps": 3, **fields})


def assert_serves(engine: DiffusionEngine) -> None:
    """Both replicas make the right pictures."""
    executor_of(engine).tamper = None
    outputs = engine.step([OmniDiffusionRequest(seed=seed, num_inference_steps=2) for seed in range(6)], PATIENCE_S)
    assert [output.images for output in outputs] == [[seed] for seed in range(6)]
    for worker in executor_of(engine).workers:
        assert worker._requests == {}, "a worker goes on with what was taken away from it"


def one_on_each(engine: DiffusionEngine, tamper: Any) -> list[OmniRequestOutput]:
    """Run two requests, one on each replica, and return the output of the first replica's before the second's."""
    placed: dict[str, int] = {}
    lock = threading.Lock()

    def note(method: str, replica: int, answer: Any) -> Any:
        if method == "the step":
            with lock:
                for request_id in executor_of(engine).workers[replica]._requests:
                    placed.setdefault(request_id, replica)
                for output in answer.finished:
                    placed.setdefault(output.request_id, replica)
        return tamper(method, replica, answer)

    engine.sleep()
    handles = engine.submit_all([ask("a", 1), ask("b", 2)])
    for handle in handles:
        next(handle.events(PATIENCE_S))
    executor_of(engine).tamper = note
    engine.wake_up()
    outputs = [handle.result(PATIENCE_S) for handle in handles]
    assert [output.request_id for output in outputs] == ["a", "b"]
    return sorted(outputs, key=lambda output: placed.get(output.request_id, 0))


# One request of a step is malformed: it fails, and those beside it do not.


def with_output(**changes: Any) -> Callable[[StepOutput, str], None]:
    def change(step_output: StepOutput, name: str) -> None:
        step_output.finished = [
            dataclasses.replace(output, **changes) if output.request_id == name else output
            for output in step_output.finished
        ]

    return change


def with_progress(**changes: Any) -> Callable[[StepOutput, str], None]:
    def change(step_output: StepOutput, name: str) -> None:
        step_output.progress = [
            dataclasses.replace(one, **changes) if one.request_id == name else one for one in step_output.progress
        ]

    return change


def twice(step_output: StepOutput, name: str) -> None:
    step_output.finished += [output for output in step_output.finished if output.request_id == name]


OF_ONE_REQUEST: dict[str, tuple[Callable[[StepOutput, str], None], str]] = {
    "error without an error": (with_output(finish_reason="error"), "finish_reason is 'error' and error is None"),
    "aborted without an error": (with_output(finish_reason="aborted"), "finish_reason is 'aborted' and error is None"),
    "finished with an error": (with_output(error=PipelineError("x")), "and error is a PipelineError"),
    "reason done": (with_output(finish_reason="done"), "finish_reason is 'done', and must be one of finished"),
    "reason None": (with_output(finish_reason=None), "finish_reason is None"),
    "reason a list": (with_output(finish_reason=[1]), "finish_reason is a list"),
    "error a text": (with_output(finish_reason="error", error="no"), "error is 'no', and must be an OmniError"),
    "error a ValueError": (with_output(finish_reason="error", error=ValueError()), "error is a ValueError"),
    "another seed": (with_output(seed=99), "seed is 99, and the request has 7"),
    "seed None": (with_output(seed=None), "seed is None"),
    "output None": (with_output(output=None), "output is None, and must be a dict"),
    "output a list": (with_output(output=[7]), "output is a list, and must be a dict"),
    "metrics None": (with_output(metrics=None), "metrics is None"),
    "metrics a dict": (with_output(metrics={}), "metrics is a dict"),
    "metrics of text": (with_output(metrics=RequestMetrics(decode_s="1")), "metrics hold '1'"),  # type: ignore[arg-type]
    "metrics NaN": (with_output(metrics=RequestMetrics(denoise_s=math.nan)), "metrics hold nan"),
    "metrics below 0": (with_output(metrics=RequestMetrics(encode_s=-1.0)), "metrics hold -1.0"),
    "two outputs": (twice, "there are two outputs"),
    "metrics without end": (with_output(metrics=RequestMetrics(denoise_s=10**400)), "metrics hold 1"),
    "progress NaN": (with_progress(step=math.nan), "StepProgress.step is nan"),
    "progress below 0": (with_progress(step=-1), "StepProgress.step is -1"),
    "progress None": (with_progress(step=None), "StepProgress.step is None"),
    "progress True": (with_progress(step=True), "StepProgress.step is True"),
    "progress of text": (with_progress(num_steps="3"), "StepProgress.num_steps is '3'"),
}


@pytest.mark.parametrize("case", OF_ONE_REQUEST)
def test_a_malformed_answer_about_one_request_fails_it_alone(engine: DiffusionEngine, case: str) -> None:
    change, words = OF_ONE_REQUEST[case]

    def tamper(method: str, replica: int, answer: Any) -> Any:
        if method == "the step":
            change(answer, "bad")
        return answer

    executor_of(engine).tamper = tamper
    names = ["a", "b", "bad", "c", "d"]
    outputs = engine.step([ask(name, 7 if name == "bad" else seed) for seed, name in enumerate(names)], PATIENCE_S)
    for seed, (name, output) in enumerate(zip(names, outputs, strict=True)):
        if name != "bad":
            assert (output.finish_reason, output.images) == ("finished", [seed]), output.error
    bad = outputs[2]
    assert (bad.finish_reason, bad.output, bad.seed) == ("error", {}, 7)
    assert isinstance(bad.error, ContractError)
    assert words in str(bad.error)
    assert "Request 'bad': Tampered.execute_step broke its contract" in str(bad.error)
    assert_serves(engine)


def test_a_seed_that_nobody_set_may_be_another(engine: DiffusionEngine) -> None:
    def tamper(method: str, replica: int, answer: Any) -> Any:
        if method == "the step":
            with_output(seed=5)(answer, "any")
        return answer

    executor_of(engine).tamper = tamper
    [output] = engine.step([OmniDiffusionRequest(request_id="any")], PATIENCE_S)
    assert (output.finish_reason, output.seed) == ("finished", 5)


def test_steps_do_not_go_back(engine: DiffusionEngine) -> None:
    def tamper(method: str, replica: int, answer: Any) -> Any:
        if method == "the step":
            for progress in answer.progress:
                progress.step = {1: 4, 2: 2, 3: 9}.get(progress.step, progress.step)
        return answer

    executor_of(engine).tamper = tamper
    handle = engine.submit(ask("a", 1))
    assert handle.result(PATIENCE_S).images == [1]
    steps = [event.step for event in handle.past_events() if event.kind == "step"]
    assert steps == sorted(steps)
    assert steps[-1] == 9


# A step is malformed as a whole: the replica loses its requests, and the other replica does not.


class DoneTwice(Future):  # type: ignore[type-arg]
    """Tells of its end more than once."""

    def add_done_callback(self, callback: Any) -> None:
        for _ in range(3):
            super().add_done_callback(callback)


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def cancelled() -> Future[Any]:
    future: Future[Any] = Future()
    future.cancel()
    return future


class CallbackRaises(Future):  # type: ignore[type-arg]
    """Cannot be waited for."""

    def add_done_callback(self, callback: Any) -> None:
        raise OSError("no callbacks here")


def asyncio_future() -> Any:
    loop = asyncio.new_event_loop()
    try:
        return loop.create_future()
    finally:
        loop.close()


async def never_awaited() -> StepOutput:
    return StepOutput()


def finished(name: str, seed: int = 1) -> OmniRequestOutput:
    return OmniRequestOutput(name, seed, "finished", {"images": [seed]})


# What execute_step returns, and words of the error.
INSTEAD_OF_A_FUTURE: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: None, "execute_step returned None, and must return a concurrent.futures.Future"),
    "a StepOutput": (StepOutput, "execute_step returned a StepOutput"),
    "a list": (lambda: [], "execute_step returned a list"),
    "a callable": (lambda: len, "execute_step returned a builtin"),
    "an asyncio future": (
        asyncio_future,
        "execute_step returned a Future, and must return a concurrent.futures.Future",
    ),
    "raises": (raises(ValueError("no way")), "Tampered.execute_step raised ValueError: no way"),
    "raises ours": (raises(ExecutorError("Out of order.")), "Out of order."),
    "raises SystemExit": (raises(SystemExit(3)), "Tampered.execute_step raised SystemExit: 3"),
    "raises KeyboardInterrupt": (raises(KeyboardInterrupt()), "execute_step raised KeyboardInterrupt"),
    "raises a panic": (raises(Panic("rust")), "execute_step raised Panic: rust"),
    "cancelled": (cancelled, "execute_step raised CancelledError"),
    "fails": (lambda: failed(OSError("disk")), "Tampered.execute_step raised OSError: disk"),
    "fails unspeakably": (lambda: failed(Unspeakable()), "Tampered.execute_step raised Unspeakable: (its message"),
    "fails with SystemExit": (lambda: failed(SystemExit(3)), "execute_step raised SystemExit: 3"),
    "no callbacks": (CallbackRaises, "execute_step raised OSError: no callbacks here"),
    "holds None": (lambda: done(None), "its future holds None, and must hold a StepOutput"),
    "holds a dict": (lambda: done({"finished": []}), "its future holds a dict"),
    "holds a text": (lambda: done("ok"), "its future holds 'ok'"),
    "holds a look-alike": (lambda: done(SimpleNamespace(finished=[])), "its future holds a SimpleNamespace"),
    "holds an output": (lambda: done(finished("a")), "its future holds a OmniRequestOutput"),
    "an unknown id": (lambda: done(StepOutput(finished=[finished("x")])), "tells of request 'x', and replica 0 has: "),
    "an id None": (lambda: done(StepOutput(finished=[finished(None)])), "tells of request None"),  # type: ignore[arg-type]
    "an id that is a list": (lambda: done(StepOutput(started=[["a"]])), "tells of request a list"),  # type: ignore[list-item]
    "an unknown id began": (lambda: done(StepOutput(started=["x"])), "StepOutput.started tells of request 'x'"),
    "progress of a stranger": (lambda: done(StepOutput(progress=[StepProgress("x", 1, 2)])), "progress tells of"),
    "no progress": (lambda: done(StepOutput(progress=[("a", 1, 2)])), "progress holds a tuple"),  # type: ignore[list-item]
    "no output": (lambda: done(StepOutput(finished=[{"a": 1}])), "finished holds a dict"),  # type: ignore[list-item]
    "finished None": (lambda: done(StepOutput(finished=None)), "StepOutput.finished is None"),  # type: ignore[arg-type]
    "finished a dict": (lambda: done(StepOutput(finished={})), "finished is a dict"),  # type: ignore[arg-type]
    "started None": (lambda: done(StepOutput(started=None)), "StepOutput.started is None"),  # type: ignore[arg-type]
    "started a text": (lambda: done(StepOutput(started="a")), "StepOutput.started is 'a'"),  # type: ignore[arg-type]
    "progress None": (lambda: done(StepOutput(progress=None)), "StepOutput.progress is None"),  # type: ignore[arg-type]
    "forwards None": (lambda: done(StepOutput(forwards=None)), "StepOutput.forwards is None"),  # type: ignore[arg-type]
    "kinds None": (lambda: done(StepOutput(kinds=None)), "StepOutput.kinds is None"),  # type: ignore[arg-type]
    "stacking of numbers": (lambda: done(StepOutput(stacking=(1, 0))), "StepOutput.stacking is a tuple"),  # type: ignore[arg-type]
    "kinds of text": (lambda: done(StepOutput(kinds={"a": "x"})), "StepOutput.kinds holds 'x'"),  # type: ignore[dict-item]
    "a forward of nobody": (lambda: done(StepOutput(forwards=[ForwardReport((), 1, 0.1)])), "with an id at least"),
    "a forward of None": (lambda: done(StepOutput(forwards=[ForwardReport(None, 1, 0.1)])), "request_ids must be"),  # type: ignore[arg-type]
    "a forward of 3": (lambda: done(StepOutput(forwards=[ForwardReport((3,), 1, 0.1)])), "request_ids holds 3"),  # type: ignore[arg-type]
    "a forward NaN": (lambda: done(StepOutput(forwards=[ForwardReport(("a",), 1, math.nan)])), "seconds holds nan"),
    "a forward -1": (lambda: done(StepOutput(forwards=[ForwardReport(("a",), 1, -1.0)])), "seconds holds -1.0"),
    "a forward inf": (lambda: done(StepOutput(forwards=[ForwardReport(("a",), 1, math.inf)])), "seconds holds inf"),
    "a forward 10^400": (
        lambda: done(StepOutput(forwards=[ForwardReport(("a",), 1, 10**400)])),
        "seconds holds 1",
    ),
    "no forward": (lambda: done(StepOutput(forwards=[1.0])), "forwards holds 1.0"),  # type: ignore[list-item]
    "start NaN": (lambda: done(StepOutput(start_seconds=[math.nan])), "start_seconds holds nan"),
    "start without end": (lambda: done(StepOutput(start_seconds=[10**400])), "start_seconds holds 1"),  # type: ignore[list-item]
    "start None": (lambda: done(StepOutput(start_seconds=[None])), "start_seconds holds None"),  # type: ignore[list-item]
}


@pytest.mark.parametrize("case", INSTEAD_OF_A_FUTURE)
def test_a_malformed_step_fails_the_requests_of_its_replica_alone(engine: DiffusionEngine, case: str) -> None:
    make, words = INSTEAD_OF_A_FUTURE[case]

    def tamper(method: str, replica: int, answer: Any) -> Any:
        if method == "execute_step" and replica == 0:
            answer.result(PATIENCE_S)  # the worker has taken the requests up
            return make()
        return answer

    bad, good = one_on_each(engine, tamper)
    assert (good.finish_reason, good.images) == ("finished", [good.seed]), good.error
    assert (bad.finish_reason, bad.output) == ("error", {})
    assert isinstance(bad.error, ExecutorError)
    assert words in str(bad.error)
    if "Out of order" not in words:
        assert "execute_step" in str(bad.error)
    assert_serves(engine)


@pytest.mark.parametrize("method", ["the step", "is_ready"])
def test_a_replica_that_is_always_wrong_does_not_take_all_that_waits(method: str) -> None:
    with make_engine(max_num_seqs=2) as engine:
        engine.sleep()
        executor_of(engine).tamper = lambda asked, replica, right: None if asked == method and replica == 0 else right
        handles = [engine.submit(ask(f"r{seed}", seed)) for seed in range(60)]
        engine.wake_up()
        outputs = [handle.result(PATIENCE_S) for handle in handles]
        assert sum(output.finish_reason == "error" for output in outputs) <= 4
        assert all(output.images == [seed] for seed, output in enumerate(outputs) if output.finish_reason != "error")


def test_an_output_that_comes_again_in_a_later_step(engine: DiffusionEngine) -> None:
    def tamper(method: str, replica: int, answer: Any) -> Any:
        # Also where the request ends in the only step that it takes.
        if method == "the step" and replica == 0 and (executor_of(engine).workers[0]._requests or answer.finished):
            answer.finished.append(finished("ended-long-ago"))
        return answer

    engine.step([ask("ended-long-ago", 1)], PATIENCE_S)
    bad, good = one_on_each(engine, tamper)
    assert good.images == [good.seed]
    assert "'ended-long-ago', and replica 0 has:" in str(bad.error)
    assert_serves(engine)


def test_an_output_for_a_request_of_the_other_replica_is_not_taken_for_it(engine: DiffusionEngine) -> None:
    def tamper(method: str, replica: int, answer: Any) -> Any:
        if method == "the step" and replica == 0:
            for output in answer.finished:
                output.request_id = {"a": "b", "b": "a"}[output.request_id]
        return answer

    bad, good = one_on_each(engine, tamper)
    assert good.images == [good.seed]
    assert f"tells of request {good.request_id!r}, and replica 0 has: {bad.request_id}" in str(bad.error)
    assert_serves(engine)


def test_a_future_that_tells_of_its_end_three_times(engine: DiffusionEngine) -> None:
    def tamper(method: str, replica: int, answer: Any) -> Any:
        if method != "execute_step":
            return answer
        again = DoneTwice()
        answer.add_done_callback(lambda ended: again.set_result(ended.result()))
        return again

    executor_of(engine).tamper = tamper
    assert [output.images for output in engine.step([ask("a", 1), ask("b", 2)], PATIENCE_S)] == [[1], [2]]


@settings(max_examples=150, deadline=None)
@given(
    field=st.sampled_from([field.name for field in dataclasses.fields(StepOutput)]),
    value=st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.sampled_from(["a", "b", "x", ""]),
            st.binary(max_size=3),
            st.builds(StepProgress, st.sampled_from(["a", "b", "x"]), st.integers() | st.floats(), st.integers()),
            st.builds(ForwardReport, st.just(("a",)) | st.none(), st.integers(), st.floats() | st.none()),
            st.builds(
                OmniRequestOutput,
                st.sampled_from(["a", "b", "x"]) | st.none(),
                st.integers(0, 3),
                st.sampled_from(["finished", "error", "aborted", "done", None]),
            ),
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", 3]), inner, max_size=3)
        ),
        max_leaves=5,
    ),
)
def test_no_step_output_harms_the_engine_or_the_other_replica(engine: DiffusionEngine, field: str, value: Any) -> None:
    def tamper(method: str, replica: int, answer: Any) -> Any:
        return dataclasses.replace(answer, **{field: value}) if method == "the step" and replica == 0 else answer

    try:
        told, good = one_on_each(engine, tamper_once(tamper))
    finally:
        executor_of(engine).tamper = None
    assert (good.finish_reason, good.images) == ("finished", [good.seed]), good.error
    if told.finish_reason != "finished":
        assert "execute_step" in str(told.error)
    engine.check_health()


def tamper_once(tamper: Any) -> Any:
    """Tamper with one step alone: an answer may as well be right, and then the request goes on."""
    used = threading.Event()

    def once(method: str, replica: int, answer: Any) -> Any:
        if method != "the step" or replica != 0 or used.is_set():
            return answer
        used.set()
        return tamper(method, replica, answer)

    return once


# What the engine's thread asks for between steps.

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: None, "None"),
    "a text": (lambda: "yes", "'yes'"),
    "1": (lambda: 1, "1"),
    "a list": (lambda: [], "a list"),
    "a method": (lambda: len, "a builtin_function_or_method"),
    "raises": (raises(OSError("gone")), "raised OSError: gone"),
    "raises without words": (raises(AssertionError()), "raised AssertionError"),
    "raises a panic": (raises(Panic("rust")), "raised Panic: rust"),
    "raises SystemExit": (raises(SystemExit(1)), "raised SystemExit: 1"),
    "raises KeyboardInterrupt": (raises(KeyboardInterrupt()), "raised KeyboardInterrupt"),
}


@pytest.mark.parametrize("case", WRONG)
def test_is_ready(engine: DiffusionEngine, case: str) -> None:
    make, words = WRONG[case]

    def tamper(method: str, replica: int, answer: Any) -> Any:
        return make() if method == "is_ready" and replica == 0 else answer

    executor_of(engine).tamper = tamper
    outputs = engine.step([ask("a", 1), ask("b", 2)], PATIENCE_S)
    assert [output.images for output in outputs] == [[1], [2]], "the other replica is ready"
    executor_of(engine).tamper = lambda method, _, answer: make() if method == "is_ready" else answer
    [output] = engine.step([ask("c")], PATIENCE_S)
    assert isinstance(output.error, ContractError)
    assert words in str(output.error)
    assert "Tampered" in str(output.error)
    assert "is_ready(0)" in str(output.error)
    assert_serves(engine)


def test_is_ready_that_fails_while_a_request_runs(engine: DiffusionEngine) -> None:
    def tamper(method: str, replica: int, answer: Any) -> Any:
        if method == "is_ready" and replica == 0 and executor_of(engine).workers[0]._requests:
            raise OSError("gone")
        return answer

    bad, good = one_on_each(engine, tamper)
    assert good.images == [good.seed]
    assert "is_ready(0) raised OSError: gone" in str(bad.error)
    assert_serves(engine)


@pytest.mark.parametrize("case", [case for case in WRONG if case != "None"])
def test_fault(engine: DiffusionEngine, case: str) -> None:
    make, words = WRONG[case]
    executor_of(engine).tamper = lambda asked, _, answer: make() if asked == "fault" else answer
    outputs = engine.step([ask("a", 1), ask("b", 2)], PATIENCE_S)
    for output in outputs:
        assert isinstance(output.error, ContractError)
        assert words in str(output.error)
        assert "fault " in str(output.error)
    assert_serves(engine)


def test_a_notice_that_raises(engine: DiffusionEngine) -> None:
    executor = executor_of(engine)
    executor.tamper = lambda asked, _, answer: raises(OSError("gone"))() if asked == "request_queued" else answer
    [output] = engine.step([ask("a", 1)], PATIENCE_S)
    assert "request_queued raised OSError: gone" in str(output.error)
    executor.tamper = lambda asked, _, answer: raises(OSError("gone"))() if asked == "request_ended" else answer
    assert_serves(engine)  # the end itself is told


def test_a_call_without_waiting_that_gives_no_future(engine: DiffusionEngine) -> None:
    executor_of(engine).tamper = lambda asked, _, answer: "reply" if asked == "begin_rpc" else answer
    with pytest.raises(ContractError, match="begin_rpc returned 'reply', and must return a concurrent.futures.Future"):
        engine.collective_rpc("interrupt", non_block=True)
    assert_serves(engine)


def test_a_call_without_waiting(engine: DiffusionEngine) -> None:
    assert engine.collective_rpc("interrupt", non_block=True).result(PATIENCE_S) == [None, None]
    assert engine.collective_rpc("interrupt", non_block=True, unique_reply_rank=1).result(PATIENCE_S) is None
    with pytest.raises(RPCError):
        engine.collective_rpc("no_such_method", non_block=True).result(PATIENCE_S)


@pytest.mark.parametrize("in_thread", [False, True], ids=["inline", "an executor without begin_rpc"])
def test_a_call_without_waiting_that_closing_the_engine_ends(in_thread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_core.executors.inline._CLOSE_TIMEOUT_S", 0.2)
    begun, goes_on = threading.Event(), threading.Event()

    def block(worker: Any) -> None:
        begun.set()
        goes_on.wait(PATIENCE_S)

    engine = make_engine() if in_thread else DiffusionEngine(OmniDiffusionConfig(log_level="error"))
    try:
        with engine:
            calls = [engine.collective_rpc(block, non_block=True) for _ in range(2)]
            assert begun.wait(PATIENCE_S)
            if in_thread:
                threading.Timer(0.2, goes_on.set).start()
        for call in calls[1:] if in_thread else calls:  # the first ends while the executor is closed
            error = call.exception(PATIENCE_S)
            assert type(error) is ExecutorError
            assert "dropped the call 'block' before it had ended" in str(error)
    finally:
        goes_on.set()


@pytest.mark.parametrize("case", [case for case in WRONG if case.startswith("raises")])
def test_interrupt(case: str) -> None:
    make, _ = WRONG[case]
    with make_engine() as engine:  # of its own, since it interrupts no more
        handle = engine.submit(ask("long", num_inference_steps=100_000))
        next(event for event in handle.events(PATIENCE_S) if event.kind == "step")
        executor_of(engine).tamper = lambda asked, _, answer: make() if asked == "interrupt" else answer
        handle.abort()
        assert handle.result(PATIENCE_S).finish_reason == "aborted"
        assert engine.step([ask("a", 1)], PATIENCE_S)[0].images == [1]


# What callers ask for.


@pytest.mark.parametrize("case", ["a text", "1", "a list", "a method", "raises", "raises without words"])
def test_check_health(engine: DiffusionEngine, case: str) -> None:
    make, words = WRONG[case]
    executor_of(engine).tamper = lambda asked, _, answer: make() if asked == "check_health" else answer
    with pytest.raises(ExecutorError, match="Tampered.*check_health") as caught:
        engine.check_health()
    assert words in str(caught.value)
    assert_serves(engine)


def test_check_health_that_says_false(engine: DiffusionEngine) -> None:
    executor_of(engine).tamper = lambda asked, _, answer: False if asked == "check_health" else answer
    with pytest.raises(ContractError, match="check_health returned False, and must return None, or raise"):
        engine.check_health()


@pytest.mark.parametrize("case", ["None", "a text", "1", "raises"])
def test_worker_stats(engine: DiffusionEngine, case: str) -> None:
    make, words = WRONG[case]
    executor_of(engine).tamper = lambda asked, _, answer: make() if asked == "worker_stats" else answer
    with pytest.raises(ContractError, match="worker_stats") as caught:
        engine.stats()
    assert words in str(caught.value)
    executor_of(engine).tamper = lambda asked, _, answer: [{}] if asked == "worker_stats" else answer
    with pytest.raises(ContractError, match="a list of WorkerStats"):
        engine.stats()


@pytest.mark.parametrize("answer", [None, (), [1], [1, 2, 3], {"a": 1}, "ok"])
def test_collective_rpc(engine: DiffusionEngine, answer: Any) -> None:
    executor_of(engine).tamper = lambda asked, _, right: answer if asked == "collective_rpc" else right
    with pytest.raises(ContractError, match="collective_rpc.*one result per rank of every replica, 2 in all"):
        engine.collective_rpc("check_health")
    with pytest.raises(ContractError, match="collective_rpc"):
        engine.stats()
    assert engine.collective_rpc("check_health", unique_reply_rank=1) == answer  # may be anything


def test_collective_rpc_that_leaks_an_error_of_its_transport(engine: DiffusionEngine) -> None:
    def tamper(method: str, replica: int, answer: Any) -> Any:
        if method == "collective_rpc":
            raise ConnectionResetError("peer")
        return answer

    executor_of(engine).tamper = tamper
    for call in (lambda: engine.collective_rpc("check_health"), engine.sleep):
        with pytest.raises(ExecutorError, match="Tampered.*raised ConnectionResetError: peer"):
            call()
    with pytest.raises(RPCError):
        engine.collective_rpc("check_health")
    assert engine.sleep_level == 0
    assert_serves(engine)


def test_stats_of_workers_that_are_none(engine: DiffusionEngine) -> None:
    executor_of(engine).tamper = lambda asked, _, right: [{}, {}] if asked == "collective_rpc" else right
    with pytest.raises(ContractError, match="stats.. of its workers gave dict, dict"):
        engine.stats()


def test_what_is_no_exception_ends_the_program_where_it_was_raised_in_the_main_thread(engine: DiffusionEngine) -> None:
    executor_of(engine).tamper = lambda asked, _, right: raises(SystemExit(5))() if asked == "check_health" else right
    with pytest.raises(SystemExit):  # as a signal's handler does
        engine.check_health()
    told: list[BaseException] = []

    def check() -> None:
        try:
            engine.check_health()
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    thread.join(PATIENCE_S)
    assert isinstance(told[0], ContractError)


def test_shutdown_that_raises() -> None:
    engine = make_engine()
    engine.sleep()
    handle = engine.submit(ask("a"))
    executor_of(engine).tamper = lambda asked, _, right: raises(OSError("stuck"))() if asked == "shutdown" else right
    with pytest.raises(ExecutorError, match="Tampered: shutdown raised OSError: stuck"):
        engine.close()
    assert handle.result(PATIENCE_S).finish_reason == "error"
    engine.close()


# At the start.


def starting(method: str, make: Callable[[], Any]) -> type[Tampered]:
    def tamper(self: Tampered, asked: str, replica: int, answer: Any) -> Any:
        return make() if asked == method else answer

    return type("Starting", (Tampered,), {"tamper": tamper})


@pytest.mark.parametrize(
    ("method", "make", "words"),
    [
        ("num_replicas", lambda: 0, "num_replicas returned 0, and must return data_parallel_size, which is 2"),
        ("num_replicas", lambda: 3, "num_replicas returned 3"),
        ("num_replicas", lambda: 2.0, "num_replicas returned 2.0"),
        ("num_replicas", lambda: None, "num_replicas returned None"),
        ("num_replicas", lambda: True, "num_replicas returned True"),
        ("num_replicas", raises(OSError("gone")), "num_replicas raised OSError: gone"),
        ("name", lambda: None, "name returned None, and must return a str"),
        ("name", raises(OSError("gone")), "name raised OSError"),
        ("describe_pipeline", lambda: {"parameters": ()}, "describe_pipeline returned a dict, and must return a Pipe"),
        ("describe_pipeline", lambda: "StableDiffusionPipeline", "describe_pipeline returned 'StableDiff"),
        ("describe_pipeline", raises(OSError("gone")), "describe_pipeline raised OSError: gone"),
        ("is_ready", lambda: None, "is_ready(0) returned None"),
        ("is_ready", raises(OSError("gone")), "is_ready(0) raised OSError"),
        ("fault", lambda: "no", "fault returned 'no', and must return None or an OmniError"),
        ("fault", lambda: OSError("gone"), "fault returned a OSError"),
        ("worker_stats", lambda: None, "worker_stats returned None"),
        ("on_change", raises(OSError("gone")), "on_change raised OSError: gone"),
    ],
)
def test_what_is_wrong_at_the_start_stops_it(method: str, make: Callable[[], Any], words: str) -> None:
    before = threading.active_count()
    with pytest.raises(ContractError) as caught:
        make_engine(starting(method, make))
    assert words in str(caught.value)
    assert threading.active_count() == before, "the executor was not shut down"


def test_an_error_at_the_start_is_not_hidden_by_a_shutdown_that_raises_too() -> None:
    def tamper(self: Tampered, asked: str, replica: int, answer: Any) -> Any:
        if asked == "shutdown":
            raise OSError("stuck")
        return 7 if asked == "num_replicas" else answer

    with pytest.raises(ContractError, match="num_replicas returned 7"):
        make_engine(type("Starting", (Tampered,), {"tamper": tamper}))


def test_an_init_that_is_not_made_whole_or_raises() -> None:
    class NotWhole(Tampered):
        def __init__(self, config: Any, context: Any) -> None:
            self.config = config

        def shutdown(self) -> None:
            pass

    class Raises(Tampered):
        def __init__(self, config: Any, context: Any) -> None:
            raise ConnectionError("no network")

    class Another(Tampered):
        def __new__(cls, *_: Any) -> Any:
            return FakeWorker()

    with pytest.raises(ContractError, match=r"NotWhole.*must call super\(\).__init__\(config, context\)"):
        make_engine(NotWhole)
    with pytest.raises(StartupError, match="Raises could not be made: ConnectionError: no network"):
        make_engine(Raises)
    with pytest.raises(ContractError, match="Another made a FakeWorker"):
        make_engine(Another)


# Executors of whole requests.


class Whole(DiffusionExecutor):
    """Whole requests; `answer` gives what `execute_model` answers."""

    answer: Any = staticmethod(lambda requests: FakeWorker().execute_model(requests))

    def _init_executor(self) -> None: ...

    def collective_rpc(
        self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None, unique_reply_rank: Any = None
    ) -> Any:
        return [None]

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        return self.answer(requests)  # type: ignore[no-any-return]

    def check_health(self) -> None: ...
    def shutdown(self) -> None: ...


def right(requests: list[OmniDiffusionRequest]) -> list[Any]:
    return FakeWorker().execute_model(requests)


def without_the_last(requests: list[OmniDiffusionRequest]) -> list[Any]:
    return right(requests)[:-1]


def first_is(instead: Any) -> Callable[[list[OmniDiffusionRequest]], list[Any]]:
    return lambda requests: [instead, *right(requests)[1:]]


@pytest.mark.parametrize(
    ("answer", "words", "others_too"),
    [
        (lambda _: None, "Whole.execute_model returned None", True),
        (lambda _: "done", "Whole.execute_model returned 'done'", True),
        (lambda requests: {one.request_id: one for one in requests}, "Whole.execute_model returned a dict", True),
        (without_the_last, "Whole.execute_model broke its contract: it must return one output per request", True),
        (lambda requests: right(requests)[::-1], "one output per request, in order", True),
        (lambda requests: [*right(requests), finished("x")], "one output per request, in order", True),
        (lambda requests: iter(right(requests)), "Whole.execute_model returned a list_iterator", True),
        (lambda requests: raises(OSError("disk"))(), "Whole.execute_model raised OSError: disk", True),
        (lambda requests: raises(Panic("rust"))(), "Whole.execute_model raised Panic: rust", True),
        (first_is(None), "Whole.execute_model returned None for request 'first'", False),
        (first_is({"images": []}), "Whole.execute_model returned a dict for request 'first'", False),
        (first_is(finished("first", 9)), "Whole.execute_model broke its contract: seed is 9", False),
        (first_is(OmniRequestOutput("first", 1, "error")), "execute_model broke its contract: finish_reason", False),
        (first_is(OmniRequestOutput("first", 1, "done")), "finish_reason is 'done'", False),  # type: ignore[arg-type]
    ],
)
def test_execute_model(answer: Any, words: str, others_too: bool) -> None:
    with make_engine(Whole, data_parallel_size=1) as engine:
        engine.sleep()
        handles = engine.submit_all([ask("first", 1), ask("second", 2), ask("third", 3)])
        engine.executor.answer = answer  # type: ignore[attr-defined]
        engine.wake_up()
        bad, *others = [handle.result(PATIENCE_S) for handle in handles]
        assert (bad.finish_reason, bad.output) == ("error", {})
        assert isinstance(bad.error, OmniError)
        assert words in str(bad.error)
        for seed, output in enumerate(others, start=2):
            assert output.finish_reason == ("error" if others_too else "finished"), output.error
            assert others_too or output.images == [seed]
        engine.executor.answer = right  # type: ignore[attr-defined]
        assert engine.step([ask("more", 4)], PATIENCE_S)[0].images == [4]


def test_a_late_answer_is_not_taken_for_another_request_of_the_same_name() -> None:
    begun, release = threading.Event(), threading.Event()

    def slow(requests: list[OmniDiffusionRequest]) -> list[Any]:
        if requests[0].seed == 1:
            begun.set()
            release.wait(PATIENCE_S)
        return right(requests)

    with make_engine(Whole, data_parallel_size=1) as engine:
        engine.executor.answer = slow  # type: ignore[attr-defined]
        first = engine.submit(ask("name", 1))
        assert begun.wait(PATIENCE_S)
        first.abort()
        assert first.result(PATIENCE_S).finish_reason == "aborted"
        second = engine.submit(ask("name", 2))
        next(second.events(PATIENCE_S))
        release.set()
        assert second.result(PATIENCE_S).images == [2]


# Beside executors: callbacks, listeners and observers that raise what is no Exception.


@pytest.mark.parametrize("error", [ValueError(), SystemExit(1), KeyboardInterrupt(), Panic()])
def test_callbacks_and_listeners_cannot_end_the_engine(engine: DiffusionEngine, error: BaseException) -> None:
    def fail(_: Any) -> None:
        raise error

    engine.sleep()
    handle = engine.submit(ask("a", 1))
    handle.add_done_callback(fail)
    handle.subscribe(fail)
    heard: list[str] = []
    handle.subscribe(lambda event: heard.append(event.kind))
    engine.wake_up()
    assert handle.result(PATIENCE_S).images == [1]
    assert_serves(engine)
    assert heard[0] == "queued"
    assert heard[-1] == "finished"


def test_a_worker_that_dies_is_no_breach(engine: DiffusionEngine) -> None:
    died = threading.Event()

    def tamper(method: str, replica: int, answer: Any) -> Any:
        if method == "execute_step" and replica == 0 and not died.is_set():
            answer.result(PATIENCE_S)
            executor_of(engine).workers[0].close()
            died.set()
            return failed(WorkerDiedError("It was killed."))
        return answer

    outputs = one_on_each(engine, tamper)
    assert sorted(output.images[0] for output in outputs) == [1, 2]
    assert_serves(engine)
