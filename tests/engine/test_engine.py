"""The engine's life: submitting, following, aborting, sleeping, failing, closing."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from hypothesis import given, settings

from invalid_values import invalid_requests
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, PluginRegistry, hookimpl
from omni_core.errors import (
    ConfigError,
    EngineClosedError,
    EngineError,
    ExecutorError,
    ModelLoadError,
    PipelineError,
    RequestAbortedError,
    RequestError,
    RequestTimeoutError,
    RPCError,
    RPCTimeoutError,
)
from small_pipelines import CASES, images

LONG = 900  # steps of a request that does not end by itself while a test looks


@pytest.fixture(scope="module")
def engine() -> Iterator[DiffusionEngine]:
    with DiffusionEngine(pipeline=images.ddpm()) as made:
        yield made


def quick(**fields: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(**{"num_inference_steps": 2, "seed": 1, **fields})


def test_outputs_are_in_the_order_of_the_requests(engine: DiffusionEngine) -> None:
    requests = [quick(num_inference_steps=steps, seed=steps, priority=steps) for steps in (3, 1, 2)]
    outputs = engine.step(requests)
    assert [output.request_id for output in outputs] == [request.request_id for request in requests]
    assert [output.metrics.num_steps for output in outputs] == [3, 1, 2]
    assert [output.seed for output in outputs] == [3, 1, 2]


def test_a_request_without_a_seed_can_be_repeated(engine: DiffusionEngine) -> None:
    [first] = engine.step([OmniDiffusionRequest(num_inference_steps=2)])
    [again] = engine.step([OmniDiffusionRequest(num_inference_steps=2, seed=first.seed)])
    assert first.images[0].tobytes() == again.images[0].tobytes()


def test_metrics_add_up(engine: DiffusionEngine) -> None:
    [output] = engine.step([quick(num_inference_steps=20)])
    metrics = output.metrics
    assert metrics.denoise_s > 0
    assert min(metrics.queue_s, metrics.encode_s, metrics.decode_s) >= 0
    assert metrics.total_s == pytest.approx(metrics.queue_s + metrics.encode_s + metrics.denoise_s + metrics.decode_s)


def test_priority_goes_first(engine: DiffusionEngine) -> None:
    ended: list[str] = []
    blocker = engine.submit(quick(num_inference_steps=LONG))
    next(event for event in blocker.events(timeout=30) if event.kind == "started")
    engine.sleep()  # so that the three below wait together
    handles = [engine.submit(quick(priority=priority, request_id=f"p{priority}")) for priority in (0, 5, 1)]
    for handle in handles:
        handle.add_done_callback(lambda done: ended.append(done.request_id))
    blocker.abort()
    engine.wake_up()
    for handle in handles:
        handle.result(30)
    assert ended == ["p5", "p1", "p0"]


def test_abort_in_the_middle(engine: DiffusionEngine) -> None:
    handle = engine.submit(quick(num_inference_steps=LONG))
    for event in handle.events(timeout=30):
        if event.kind == "step" and event.step == 3:
            handle.abort()
            handle.abort()
    output = handle.result(10)
    assert output.finish_reason == "aborted"
    assert output.images == []
    assert 3 <= output.metrics.num_steps < LONG
    with pytest.raises(RequestAbortedError, match=handle.request_id):
        output.raise_for_error()
    handle.abort()  # after the end: nothing
    engine.abort("of an unknown id")


def test_abort_runs_the_finally_blocks_of_the_pipeline() -> None:
    left: list[str] = []

    class WithFinally:
        def __init__(self) -> None:
            self.model = torch.nn.Linear(2, 2)

        def __call__(self) -> dict[str, Any]:
            try:
                while True:
                    try:
                        self.model(torch.ones(2))
                    except Exception:
                        left.append("swallowed")
            finally:
                left.append("finally")

    with DiffusionEngine(pipeline=WithFinally()) as engine:
        handle = engine.submit(OmniDiffusionRequest())
        next(event for event in handle.events(timeout=30) if event.kind == "started")
        handle.abort()
        assert handle.result(10).finish_reason == "aborted"
    assert left == ["finally"]


def test_abort_before_the_start(engine: DiffusionEngine) -> None:
    engine.sleep()
    handle = engine.submit(quick())
    handle.abort()
    assert handle.result(10).finish_reason == "aborted"
    assert [event.kind for event in handle.events()] == ["queued", "finished"]
    engine.wake_up()


def test_timeout_while_running_and_while_waiting() -> None:
    with DiffusionEngine(OmniDiffusionConfig(max_num_seqs=1), pipeline=images.ddpm()) as engine:
        running = engine.submit(quick(num_inference_steps=LONG, timeout_s=0.2))
        waiting = engine.submit(quick(timeout_s=0.01))
        for handle in (running, waiting):
            output = handle.result(30)
            assert output.finish_reason == "timeout"
            with pytest.raises(RequestTimeoutError, match="timeout_s"):
                output.raise_for_error()
        assert engine.step([quick()])[0].finish_reason == "finished"


def test_result_and_events_time_out_and_the_request_goes_on(engine: DiffusionEngine) -> None:
    engine.sleep()
    handle = engine.submit(quick())
    with pytest.raises(TimeoutError, match="goes on"):
        handle.result(timeout=0.01)
    events = handle.events(timeout=0.5)
    assert next(events).kind == "queued"
    with pytest.raises(TimeoutError):
        next(events)
    with pytest.raises(TimeoutError):
        engine.step([quick()], timeout=0.01)
    engine.wake_up()
    assert handle.result(30).finish_reason == "finished"


def test_bad_requests_are_refused_before_they_reach_the_worker(engine: DiffusionEngine) -> None:
    for request, words in [
        (quick(prompt="a red seven"), "takes no 'prompt'"),
        (quick(extra_args={"num_inference_step": 3}), "Did you mean 'num_inference_steps'"),
    ]:
        with pytest.raises(RequestError, match=words):
            engine.step([quick(), request])
    with pytest.raises(RequestError, match="write .request."):
        engine.step(quick())  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="not a str"):
        engine.step(["a red seven"])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="needs 'class_labels'"), DiffusionEngine(pipeline=images.dit()) as dit:
        dit.submit(OmniDiffusionRequest())


def test_no_invalid_request_reaches_the_worker() -> None:
    calls: list[Any] = []

    class Counting(StableDiffusion3Pipeline):  # type: ignore[misc]
        def __call__(self, prompt: Any = None, num_inference_steps: int = 2, generator: Any = None, **_: Any) -> Any:
            calls.append(prompt)
            return {"images": []}

    pipeline = images.stable_diffusion_3()
    pipeline.__class__ = Counting

    @settings(max_examples=300)
    @given(invalid_requests())
    def refuse(fields: dict[str, Any]) -> None:
        with pytest.raises(RequestError):
            engine.submit(OmniDiffusionRequest(**fields))

    with DiffusionEngine(pipeline=pipeline) as engine:
        refuse()
        assert calls == []
        assert engine.step([OmniDiffusionRequest(prompt="x")])[0].finish_reason == "finished"
        assert calls == ["x"]


def test_an_id_in_use_is_refused(engine: DiffusionEngine) -> None:
    engine.sleep()
    handle = engine.submit(quick(request_id="twin"))
    with pytest.raises(RequestError, match="'twin' is running already"):
        engine.submit(quick(request_id="twin"))
    with pytest.raises(RequestError, match="'other' is running already"):
        engine.step([quick(request_id="other"), quick(request_id="other")])
    engine.wake_up()
    handle.result(30)
    assert engine.step([quick(request_id="twin")])[0].finish_reason == "finished"


def raising_callback(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory (simulated)")


def nan_callback(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {"latents": values["latents"] * float("nan")}


def wrong_callback(*_: Any) -> Any:
    return 3


@pytest.mark.parametrize(
    ("extra_args", "words"),
    [
        ({"callback_on_step_end": raising_callback}, "OutOfMemoryError.*max_num_seqs"),
        ({"callback_on_step_end": nan_callback}, "not numbers"),
        ({"callback_on_step_end": wrong_callback}, "AttributeError"),
        ({"max_sequence_length": "long"}, "TypeError"),
        ({"latents": torch.zeros(1, 9, 9, 9)}, "RuntimeError"),
    ],
)
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_a_request_that_raises_fails_alone(extra_args: dict[str, Any], words: str, output_type: str) -> None:
    case = CASES["stable_diffusion_3"]
    with DiffusionEngine(pipeline=case.build()) as engine:
        good, bad, another = engine.step(
            [
                OmniDiffusionRequest(**case.fields, seed=1, output_type=output_type, extra_args=extra)
                for extra in ({}, extra_args, {})
            ]
        )
    assert bad.finish_reason == "error"
    assert bad.output == {}
    with pytest.raises(PipelineError, match=words) as caught:
        bad.raise_for_error()
    assert bad.request_id in str(caught.value)
    assert "Traceback (most recent call last)" in str(caught.value.worker_traceback)
    where = "nan_watch.py" if words == "not numbers" and output_type != "pil" else "pipeline_stable_diffusion_3.py"
    assert where in str(caught.value.worker_traceback)
    assert good.finish_reason == another.finish_reason == "finished"


def test_several_threads_submit_at_once(engine: DiffusionEngine) -> None:
    results: dict[int, Any] = {}

    def ask(number: int) -> None:
        results[number] = engine.step([quick(seed=number % 3)])[0].images[0].tobytes()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 12
    for number in range(12):
        assert results[number] == results[number % 3]
    assert len(set(results.values())) == 3


def test_two_engines_at_once() -> None:
    with DiffusionEngine(pipeline=images.ddpm()) as one, DiffusionEngine(pipeline=images.ddpm()) as other:
        handles = [engine.submit(quick(seed=4, num_inference_steps=5)) for engine in (one, other)]
        first, second = (handle.result(30).images[0].tobytes() for handle in handles)
    assert first == second


# Calls to the worker.


class Extension:
    """Adds a method to the worker."""

    def add(self, number: int, more: int = 0) -> int:
        return number + more + self.rank  # type: ignore[attr-defined, no-any-return]


class ClashingExtension:
    """Has a name that the worker has."""

    def sleep(self) -> None:
        pass


def test_collective_rpc(engine: DiffusionEngine) -> None:
    assert engine.collective_rpc("check_health") == [None]
    assert engine.collective_rpc(lambda worker, x: (worker.rank, x), args=(3,)) == [(0, 3)]
    assert engine.collective_rpc(lambda worker: worker.replica, unique_reply_rank=0) == 0
    with pytest.raises(RPCError, match="Did you mean 'check_health'"):
        engine.collective_rpc("check_healt")
    with pytest.raises(RPCError, match="no method '_load'"):
        engine.collective_rpc("_load")
    with pytest.raises(RPCError, match="no rank 1"):
        engine.collective_rpc("check_health", unique_reply_rank=1)
    with pytest.raises(RPCError, match="ZeroDivisionError"):
        engine.collective_rpc(lambda worker: 1 / 0)


def test_a_worker_extension_adds_methods() -> None:
    config = OmniDiffusionConfig(worker_extension_cls=f"{__name__}:Extension")
    sys.modules.setdefault(__name__, sys.modules[Extension.__module__])
    with DiffusionEngine(config, pipeline=images.ddpm()) as engine:
        assert engine.collective_rpc("add", args=(3,), kwargs={"more": 4}) == [7]
    for path, words in [
        (f"{__name__}:ClashingExtension", "defines sleep"),
        (f"{__name__}:LONG", "not a class"),
        ("no_such_module:Thing", "No module named"),
    ]:
        with pytest.raises(ConfigError, match=words):
            DiffusionEngine(OmniDiffusionConfig(worker_extension_cls=path), pipeline=images.ddpm())


def test_an_rpc_takes_its_turn_between_two_steps(engine: DiffusionEngine) -> None:
    handle = engine.submit(quick(num_inference_steps=LONG))
    next(event for event in handle.events(timeout=30) if event.kind == "started")
    assert engine.collective_rpc("check_health", timeout=30) == [None]
    assert not handle.done()
    handle.abort()


def test_an_rpc_that_takes_too_long(engine: DiffusionEngine) -> None:
    release = threading.Event()
    with pytest.raises(RPCTimeoutError, match="within 0.05 s"):
        engine.collective_rpc(lambda worker: release.wait(30), timeout=0.05)
    release.set()
    assert engine.collective_rpc(lambda worker: "mine") == ["mine"], "the late reply was taken for another's"


def test_closing_lets_nobody_wait_behind_a_call_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_core.executors.inline._CLOSE_TIMEOUT_S", 0.05)
    begun, release = threading.Event(), threading.Event()

    def block(worker: Any) -> None:
        begun.set()
        release.wait(60)

    engine = DiffusionEngine(pipeline=images.ddpm())
    told: dict[str, BaseException] = {}

    def call(name: str, method: Any) -> threading.Thread:
        def run() -> None:
            try:
                engine.collective_rpc(method)
            except ExecutorError as error:
                told[name] = error

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    stuck = call("stuck", block)
    assert begun.wait(30)
    waiting = call("waiting", "check_health")
    while engine.executor._thread._calls.empty():
        assert waiting.is_alive()
    engine.close()
    for thread in (stuck, waiting):
        thread.join(30)
        assert not thread.is_alive()
    assert "the call 'block' had not ended by then" in str(told["stuck"])
    assert "shut down before the call 'check_health' began" in str(told["waiting"])
    release.set()


def test_an_rpc_from_within_the_worker(engine: DiffusionEngine) -> None:
    inner = engine.collective_rpc(lambda worker: engine.collective_rpc("check_health", timeout=5), timeout=30)
    assert inner == [[None]]


# Sleeping.


@pytest.mark.parametrize("level", [1, 2])
def test_requests_wait_while_the_engine_sleeps(level: int) -> None:
    with DiffusionEngine(OmniDiffusionConfig(model="small_pipelines.images:ddpm")) as engine:
        [before] = engine.step([quick(num_inference_steps=40)])
        running = engine.submit(quick(num_inference_steps=40))
        next(event for event in running.events(timeout=30) if event.kind == "started")
        engine.sleep(level=level)
        engine.sleep(level=1)  # asleep already
        waiting = engine.submit(quick(num_inference_steps=40))
        assert engine.sleep_level > 0
        with pytest.raises(ExecutorError, match="asleep"):
            engine.collective_rpc(lambda worker: worker.pipeline)
        assert not waiting.done()
        engine.check_health()
        engine.wake_up()
        engine.wake_up()
        for handle in (running, waiting):
            output = handle.result(30).raise_for_error()
            assert output.images[0].tobytes() == before.images[0].tobytes()


@pytest.mark.parametrize("level", [1, 2])
def test_running_requests_can_be_aborted_while_asleep(level: int) -> None:
    with DiffusionEngine(OmniDiffusionConfig(model="small_pipelines.images:ddpm")) as engine:
        handle = engine.submit(quick(num_inference_steps=LONG))
        next(event for event in handle.events(timeout=30) if event.kind == "started")
        engine.collective_rpc("sleep", kwargs={"level": level})
        handle.abort()
        assert handle.result(10).finish_reason == "aborted"


def test_sleeping_level_2_frees_memory_and_a_given_pipeline_refuses_it() -> None:
    with DiffusionEngine(OmniDiffusionConfig(model="small_pipelines.images:ddpm")) as engine:
        held = engine.collective_rpc(lambda worker: weakref.ref(worker.pipeline.unet), unique_reply_rank=0)
        assert held() is not None
        engine.sleep(level=2)
        assert held() is None, "something still holds the weights"
    with DiffusionEngine(pipeline=images.ddpm()) as engine:
        with pytest.raises(ExecutorError, match="given as an object"):
            engine.sleep(level=2)
        assert engine.sleep_level == 0
        with pytest.raises(ValueError, match="sleep level 3"):
            engine.sleep(level=3)
        assert engine.step([quick()])[0].finish_reason == "finished"


MEMORY = """
import psutil
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest

def resident():
    return psutil.Process().memory_info().rss / 2**20

with DiffusionEngine(OmniDiffusionConfig(model="small_pipelines.images:heavy")) as engine:
    request = dict(num_inference_steps=1, seed=1)
    [before] = engine.step([OmniDiffusionRequest(**request)])
    awake = resident()
    engine.sleep(level=2)
    asleep = resident()
    engine.wake_up()
    [after] = engine.step([OmniDiffusionRequest(**request)])
    assert before.images[0].tobytes() == after.images[0].tobytes()
    print(awake - asleep)
"""


def run_python(code: str, **more: Any) -> subprocess.CompletedProcess[str]:
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": tests}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True, timeout=120, check=False, **more
    )


def test_resident_memory_falls_at_level_2() -> None:
    done = run_python(MEMORY)
    assert done.returncode == 0, done.stderr
    freed = float(done.stdout)
    assert freed > 0.8 * 160, f"only {freed:.0f} MiB of the 160 MiB of weights were given back"


# Starting and closing.


def test_a_bad_model_is_an_error_that_says_so(tmp_path: Any) -> None:
    (tmp_path / "empty").mkdir()
    for model, words in [
        (str(tmp_path / "missing"), "no model at"),
        (str(tmp_path / "empty"), "model_index.json"),
        ("no_such_module:factory", "No module named"),
        ("small_pipelines.images:no_such", "has no attribute"),
        ("small_pipelines.images:Any", "TypeError"),
        ("builtins:object", "cannot be called"),
        ("nobody/nothing", "Loading nobody/nothing failed"),
    ]:
        with pytest.raises(ModelLoadError, match=words):
            DiffusionEngine(OmniDiffusionConfig(model=model))


def test_what_cannot_be_honoured_is_refused_at_the_start() -> None:
    for options in [
        {"data_parallel_size": 2},
        {"cfg_parallel_size": 2},
        {"tensor_parallel_size": 2},
        {"step_timeout_s": 3},
        {"executor_options": {"processes": 3}},
        {"device": "cuda:99"},
        {"device": "no-such-device"},
        {"offload": "model"},
        {"attention_backend": "no-such-backend"},
        {"request_defaults": {"no_such_argument": 3}},
        {"model": "some/model"},
    ]:
        with pytest.raises(ConfigError):
            DiffusionEngine(OmniDiffusionConfig(**options), pipeline=images.stable_diffusion_3())


def test_request_defaults_hold_unless_the_request_says_otherwise() -> None:
    config = OmniDiffusionConfig(request_defaults={"num_inference_steps": 4})
    with DiffusionEngine(config, pipeline=images.ddpm()) as engine:
        outputs = engine.step([OmniDiffusionRequest(), OmniDiffusionRequest(num_inference_steps=2)])
    assert [output.metrics.num_steps for output in outputs] == [4, 2]


def test_start_up_that_takes_too_long() -> None:
    with pytest.raises(ExecutorError, match="startup_timeout_s"):
        DiffusionEngine(OmniDiffusionConfig(model="small_pipelines.images:slow", startup_timeout_s=0.05))


def test_closing_fails_what_runs_and_what_waits() -> None:
    engine = DiffusionEngine(pipeline=images.ddpm())
    handles = [engine.submit(quick(num_inference_steps=LONG)) for _ in range(20)]
    next(event for event in handles[0].events(timeout=30) if event.kind == "started")
    threads = [threading.Thread(target=engine.close) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for handle in handles:
        with pytest.raises(EngineClosedError):
            handle.result(1).raise_for_error()
    engine.close()
    for use in (lambda: engine.submit(quick()), engine.check_health, engine.sleep, lambda: engine.collective_rpc("x")):
        with pytest.raises(EngineClosedError):
            use()


def test_an_engine_that_nobody_holds_is_closed(wait_until: Callable[..., None]) -> None:
    engine = DiffusionEngine(pipeline=images.ddpm())
    core = engine._core
    handle = engine.submit(quick())
    del engine
    gc.collect()
    assert handle.result(30).finish_reason == "finished", "a handle keeps its engine"
    del handle
    gc.collect()
    wait_until(lambda: core._closed)


def test_make_engine_and_get_executor_class() -> None:
    config = OmniDiffusionConfig()
    assert DiffusionEngine.get_executor_class(config).__name__ == "InlineExecutor"
    with DiffusionEngine.make_engine(config, pipeline=images.ddpm()) as engine:
        assert isinstance(engine.executor, DiffusionEngine.get_executor_class(config))
        assert engine.executor.execute_model([quick()])[0].finish_reason == "finished"


def test_at_interpreter_exit_and_after_a_fork() -> None:
    code = """
import os, sys
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.errors import EngineClosedError
engine = DiffusionEngine(OmniDiffusionConfig(model="small_pipelines.images:ddpm"))
handle = engine.submit(OmniDiffusionRequest(num_inference_steps=900))
if os.fork() == 0:
    for use in (handle.result, engine.check_health, lambda: engine.step([OmniDiffusionRequest()])):
        try:
            use()
        except EngineClosedError:
            continue
        os._exit(3)
    engine.close()
    sys.exit(0)
_, status = os.wait()
print("child", os.waitstatus_to_exitcode(status))
"""
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "child 0\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_within_a_step() -> None:
    code = """
import os, signal, threading
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, PluginRegistry, hookimpl

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs with & ignore it

class Interrupt:
    @hookimpl
    def omni_request_step(self, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
    @hookimpl
    def omni_request_finished(self, output):
        # One write: another thread prints too.
        print(f"{output.finish_reason} {output.metrics.num_steps < 300}\\n", end="", flush=True)

plugins = PluginRegistry()
plugins.register(Interrupt())
with DiffusionEngine(OmniDiffusionConfig(model="small_pipelines.images:ddpm"), plugins=plugins) as engine:
    try:
        engine.step([OmniDiffusionRequest(num_inference_steps=900, request_id="long")])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(engine.step([OmniDiffusionRequest(num_inference_steps=2)])[0].finish_reason, flush=True)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert sorted(set(done.stdout.split("\n"))) == ["", "aborted True", "finished", "finished True", "interrupted"]


# Observers.


def test_observers_hear_of_everything_and_cannot_break_anything() -> None:
    heard: list[str] = []

    class Observer:
        @hookimpl
        def omni_engine_started(self, executor: Any) -> None:
            heard.append(f"engine started {executor.name}")

        @hookimpl
        def omni_engine_closed(self) -> None:
            heard.append("engine closed")

        @hookimpl
        def omni_request_queued(self, request: OmniDiffusionRequest) -> None:
            heard.append(f"queued {request.request_id}")

        @hookimpl
        def omni_request_started(self, request_id: str, replica: int) -> None:
            heard.append(f"started {request_id} on {replica}")

        @hookimpl
        def omni_request_step(self, request_id: str, step: int, num_steps: int) -> None:
            heard.append(f"step {request_id} {step}/{num_steps}")

        @hookimpl
        def omni_request_finished(self, output: Any) -> None:
            heard.append(f"finished {output.request_id}")
            raise RuntimeError("an observer with a fault")

        @hookimpl
        def omni_request_failed(self, request_id: str, error: Exception) -> None:
            heard.append(f"failed {request_id} {type(error).__name__}")

    plugins = PluginRegistry()
    plugins.register(Observer())
    with DiffusionEngine(pipeline=images.stable_diffusion_3(), plugins=plugins) as engine:
        case = CASES["stable_diffusion_3"]
        good = OmniDiffusionRequest(**case.fields, request_id="good")
        bad = OmniDiffusionRequest(**case.fields, request_id="bad", extra_args={"max_sequence_length": "x"})
        assert [output.finish_reason for output in engine.step([good, bad])] == ["finished", "error"]
    assert [line for line in heard if "good" in line] == [
        "queued good",
        "started good on 0",
        *[line for line in heard if line.startswith("step good")],
        "finished good",
    ]
    assert "step good 3/3" in heard
    assert [line for line in heard if "bad" in line] == ["queued bad", "started bad on 0", "failed bad PipelineError"]
    assert heard[0] == "engine started inline"
    assert heard[-1] == "engine closed"


def test_waiting_in_the_engines_own_thread_is_refused(engine: DiffusionEngine) -> None:
    caught: list[BaseException] = []
    done = threading.Event()

    def callback(_: Any) -> None:
        try:
            engine.step([quick()])
        except EngineError as error:
            caught.append(error)
        finally:
            done.set()

    engine.submit(quick()).add_done_callback(callback)
    assert done.wait(30)
    # The callback runs at once, in this thread, if the request had ended before it was added.
    assert not caught or "Use engine.submit" in str(caught[0])


def test_a_plugin_changes_the_pipeline_or_stops_the_start() -> None:
    class Changes:
        @hookimpl
        def omni_pipeline_loaded(self, pipeline: Any, worker: Any) -> None:
            pipeline.loaded_by = worker.rank

        @hookimpl
        def omni_configure(self, config: OmniDiffusionConfig) -> None:
            if config.max_num_seqs == 3:
                raise ValueError("three is too many")

    plugins = PluginRegistry()
    plugins.register(Changes(), name="changes")
    with DiffusionEngine(pipeline=images.ddpm(), plugins=plugins) as engine:
        assert engine.collective_rpc(lambda worker: worker.pipeline.loaded_by) == [0]
    with pytest.raises(Exception, match="changes.*three is too many"):
        DiffusionEngine(OmniDiffusionConfig(max_num_seqs=3), pipeline=images.ddpm(), plugins=plugins)


def test_a_pipeline_without_a_denoiser() -> None:
    class Counts:
        def __call__(self, prompt: str) -> dict[str, list[int]]:
            return {"numbers": [len(prompt)]}

    with DiffusionEngine(pipeline=Counts()) as engine:
        outputs = engine.step([OmniDiffusionRequest(prompt=prompt) for prompt in ("a", "bb")])
        assert [output.raise_for_error().output for output in outputs] == [{"numbers": [1]}, {"numbers": [2]}]
