"""What is this executor's own: processes, their environment, calls, deaths and restarts."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import multiproc_calls as calls
import multiproc_models as models
import numpy as np
import psutil
import pytest
import torch

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, PluginRegistry, hookimpl
from omni_core.errors import (
    ConfigError,
    ExecutorError,
    ModelLoadError,
    OmniError,
    RequestError,
    RPCError,
    RPCTimeoutError,
    StartupError,
    WorkerDiedError,
)

MODEL = "omni_core.testing.pipelines:class_conditional"


def config(**fields: Any) -> OmniDiffusionConfig:
    return OmniDiffusionConfig(**{"executor_class": "multiproc", "model": MODEL, **fields})


def ask(seed: int = 1, **fields: Any) -> OmniDiffusionRequest:
    fields = {"num_inference_steps": 4, "output_type": "np", "extra_args": {"class_labels": [1]}, **fields}
    return OmniDiffusionRequest(seed=seed, **fields)


@pytest.fixture(scope="module")
def engine() -> Iterator[DiffusionEngine]:
    with DiffusionEngine(config()) as made:
        yield made


@pytest.fixture(scope="module")
def pair() -> Iterator[DiffusionEngine]:
    """Two replicas."""
    with DiffusionEngine(config(data_parallel_size=2)) as made:
        yield made


def pids(engine: DiffusionEngine) -> list[int]:
    return [pid for replica in engine.executor.worker_pids() for pid in replica]  # type: ignore[attr-defined]


# --- processes -------------------------------------------------------------------------------------------------


def test_workers_are_other_processes_with_an_environment_of_their_own(pair: DiffusionEngine) -> None:
    found = pair.collective_rpc(calls.pid)
    assert found == pids(pair)
    assert len({os.getpid(), *found}) == 3
    for environment in pair.collective_rpc(calls.environment):
        assert environment["stdin"] == "/dev/null"
        assert environment["session"] != os.getsid(0), "Ctrl-C in a terminal reaches it"
        assert environment["main"] is None or "pytest" not in environment["main"]


def test_threads_are_shared_between_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    from omni_core.wire.worker_setup import WorkerSetup, own_config, sets_no_threads

    assert sets_no_threads(config())
    assert not sets_no_threads(config(num_threads=5))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert not sets_no_threads(config())
    # What follows is decided where the worker runs, whose cores may be others than the driver's.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(6)))

    def threads(num_local: int, shares_cores: bool, **fields: Any) -> int | None:
        program: Any = None
        return own_config(WorkerSetup(config(**fields), 0, 0, 1, 0, num_local, shares_cores, program, b"")).num_threads

    assert threads(2, True) == 3
    assert threads(8, True) == 1
    assert threads(2, False) is None
    assert threads(2, False, num_threads=5) == 5


@pytest.mark.parametrize(
    ("visible", "index", "expected"), [("0,1", 0, "0"), ("0,1", 1, "1"), ("3,5", 3, "5"), ("", 1, "")]
)
def test_each_worker_sees_one_accelerator(
    monkeypatch: pytest.MonkeyPatch, visible: str, index: int, expected: str
) -> None:
    from omni_core.worker.parallel.accelerator import choose_accelerator

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    choose_accelerator(config(), index, 4)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    choose_accelerator(config(device="cpu"), index, 4)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_the_programs_start_method_is_left_alone(engine: DiffusionEngine) -> None:
    # By name: vLLM-Omni sets the global one.
    assert multiprocessing.get_start_method(allow_none=True) in (None, "fork")
    assert engine.check_health() is None


def test_spawned_workers_give_the_same(engine: DiffusionEngine) -> None:
    with DiffusionEngine(config(executor_options={"start_method": "spawn"})) as spawned:
        assert pids(spawned) != pids(engine)
        [one], [other] = spawned.step([ask()]), engine.step([ask()])
        assert np.array_equal(one.output["images"], other.output["images"])
        os.kill(pids(spawned)[0], signal.SIGKILL)
        [again] = spawned.step([ask()])
        assert np.array_equal(again.raise_for_error().output["images"], other.output["images"])


def test_what_workers_say_comes_out_with_their_names(
    pair: DiffusionEngine, caplog: pytest.LogCaptureFixture, wait_until: Callable[..., None]
) -> None:
    with caplog.at_level(logging.INFO, "omni_core"):
        pair.collective_rpc(calls.say)
        wait_until(lambda: caplog.text.count("something happened") == 2 and caplog.text.count("a plain line") == 2)
    happened = [record for record in caplog.records if "something happened" in record.message]
    assert sorted(one.omni["replica"] for one in happened) == [0, 1]
    assert {(one.omni["rank"], one.omni["number"], one.levelname) for one in happened} == {(0, 7, "WARNING")}


def test_start_up_failures_tell_the_workers_own_error() -> None:
    with pytest.raises(ModelLoadError, match="no_such_module") as caught:
        DiffusionEngine(config(model="no_such_module:build"))
    assert caught.value.worker_traceback is not None
    assert "Traceback" in caught.value.worker_traceback
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        DiffusionEngine(config(tensor_parallel_size=2))
    with pytest.raises(ConfigError, match="max_failures"):
        DiffusionEngine(config(executor_options={"max_failure": 3}))


def test_a_start_that_fails_half_way_ends_the_workers_that_were_up(tmp_path: Any) -> None:
    # By name: vLLM-Omni leaves them behind. `_nothing_left` looks.
    with pytest.raises(StartupError, match="exited with code 17"):
        DiffusionEngine(
            config(
                model="multiproc_models:one_of_two_dies", model_options={"folder": str(tmp_path)}, data_parallel_size=2
            )
        )


def test_a_start_that_hangs_ends_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(StartupError, match="startup_timeout_s = 12 s"):
        DiffusionEngine(config(model="multiproc_models:hangs", startup_timeout_s=12))
    assert time.monotonic() - began < 20


# --- calls -----------------------------------------------------------------------------------------------------


def test_bfloat16_stays_bfloat16(engine: DiffusionEngine) -> None:
    # By name: peers widen it on the way.
    [found] = engine.collective_rpc(calls.bfloat16)
    assert found["tensor"].dtype == torch.bfloat16
    assert torch.equal(found["tensor"], torch.full((100, 100), 1.5, dtype=torch.bfloat16))


def test_large_replies_are_kept_apart(engine: DiffusionEngine) -> None:
    held = [engine.collective_rpc(calls.megabytes, args=(8, fill))[0] for fill in range(6)]
    assert [int(one.sum()) for one in held] == [fill * (8 << 20) for fill in range(6)]
    back = engine.collective_rpc(calls.give_back, args=(held[5],))[0]
    assert torch.equal(back, held[5])


def test_a_future_instead_of_waiting(pair: DiffusionEngine, tmp_path: Any) -> None:
    future = pair.executor.begin_rpc(calls.pid)
    assert future.result(30) == pids(pair)
    failing = pair.executor.begin_rpc("no_such_method")
    assert isinstance(failing.exception(30), RPCError)
    assert pair.collective_rpc(calls.pid, unique_reply_rank=1) == pids(pair)[1]


def test_a_late_reply_is_not_given_to_the_next_caller(engine: DiffusionEngine, tmp_path: Any) -> None:
    # By name: vLLM-Omni's executor takes the next reply that comes.
    with pytest.raises(RPCTimeoutError, match="wait_at_barrier"):
        engine.collective_rpc(calls.wait_at_barrier, timeout=0.1, args=(str(tmp_path), 0.5))
    assert engine.collective_rpc(calls.give_back, args=("mine",)) == ["mine"]
    assert engine.collective_rpc(calls.give_back, args=("mine too",)) == ["mine too"]


def test_functions_of_this_test_alone_travel(engine: DiffusionEngine) -> None:
    offset = 5
    assert engine.collective_rpc(lambda worker, x: (worker.rank, x + offset), args=(2,)) == [(0, 7)]


def test_what_cannot_travel_is_named_and_the_worker_goes_on(engine: DiffusionEngine) -> None:
    with pytest.raises(RPCError, match=r"give_back.*args.*lock"):
        engine.collective_rpc(calls.give_back, args=(threading.Lock(),))
    with pytest.raises(RPCError, match=r"result of 'make_lock' cannot be sent.*lock"):

        def make_lock(_worker: Any) -> Any:
            return [threading.Lock()]

        engine.collective_rpc(make_lock)
    assert engine.collective_rpc(calls.give_back, args=(1,)) == [1]


def test_a_call_that_a_worker_cannot_read_is_answered(engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    module = types.ModuleType("only_in_the_driver")
    exec("def function(worker): return 1", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_in_the_driver", module)
    with pytest.raises(RPCError, match="only_in_the_driver"):
        engine.collective_rpc(module.function)
    assert engine.collective_rpc(calls.give_back, args=(1,)) == [1]


# --- deaths ----------------------------------------------------------------------------------------------------


class Observer:
    """Notes what is said of workers."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.at: list[float] = []

    @hookimpl
    def omni_worker_died(self, replica: int, rank: int, reason: str) -> None:
        self.at.append(time.monotonic())
        self.seen.append(("died", replica, rank, reason))

    @hookimpl
    def omni_worker_restarted(self, replica: int, rank: int) -> None:
        self.at.append(time.monotonic())
        self.seen.append(("restarted", replica, rank))


@pytest.mark.alone
@pytest.mark.parametrize("busy", [False, True])
def test_a_death_is_noticed_at_once(busy: bool, wait_until: Callable[..., None]) -> None:
    plugins, observer = PluginRegistry(), Observer()
    plugins.register(observer, name="observer")
    seconds: list[float] = []
    with DiffusionEngine(config(), plugins=plugins) as engine:
        # Several times: what the machine does besides can only make it later.
        for number in range(4):
            handle = engine.submit(ask(num_inference_steps=900)) if busy else None
            if handle is not None:
                next(event for event in handle.events(30) if event.kind == "step")
            [pid] = pids(engine)
            killed_at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda number=number: len(observer.seen) > 2 * number)  # type: ignore[misc]
            seconds.append(observer.at[2 * number] - killed_at)
            wait_until(lambda number=number: len(observer.seen) == 2 * number + 2, timeout=60)  # type: ignore[misc]
            assert "SIGKILL" in observer.seen[2 * number][3]
            assert observer.seen[2 * number + 1] == ("restarted", 0, 0)
            [stats] = engine.stats().workers
            assert stats.restarts == number + 1
            assert stats.pid == pids(engine)[0] != pid
            if handle is not None:
                handle.abort()
                assert handle.result(30).finish_reason == "aborted"
    assert min(seconds) < 0.1


def test_a_call_under_which_the_worker_dies_says_so(engine: DiffusionEngine) -> None:
    with pytest.raises(WorkerDiedError, match="exited with code 9"):
        engine.collective_rpc(calls.leave, args=(9,))
    with pytest.raises(WorkerDiedError, match="exited with code 5"):
        engine.collective_rpc(calls.leave_politely)
    # The next call waits for the one that comes in its place.
    assert engine.collective_rpc(calls.give_back, args=(1,), timeout=60) == [1]
    assert engine.step([ask()])[0].finish_reason == "finished"


def test_a_worker_that_raises_in_a_step_is_replaced(engine: DiffusionEngine) -> None:
    [before] = pids(engine)
    engine.collective_rpc(calls.fill_a_step)
    [output] = engine.step([ask()], timeout=60)
    assert output.finish_reason == "finished"
    assert output.metrics.num_retries == 1
    assert pids(engine) != [before]


def test_a_worker_that_hangs_in_a_step_is_replaced() -> None:
    # By name: vLLM-Omni's execution call has no deadline, and its monitor sees deaths only.
    with DiffusionEngine(config(step_timeout_s=2.0)) as engine:
        engine.collective_rpc(calls.hang_in_steps)
        [output] = engine.step([ask()], timeout=60)
        assert output.finish_reason == "finished"
        assert output.metrics.num_retries == 1


def test_a_stopped_worker_is_taken_for_dead_when_it_is_silent(wait_until: Callable[..., None]) -> None:
    with DiffusionEngine(config(executor_options={"heartbeat_timeout_s": 2.0})) as engine:
        [pid] = pids(engine)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        with pytest.raises(ExecutorError, match="No answer within"):
            engine.check_health()
        [output] = engine.step([ask()], timeout=60)
        assert output.finish_reason == "finished"
        assert pids(engine) != [pid]
        engine.check_health()


@pytest.mark.alone
def test_health_is_told_within_a_second_under_load(engine: DiffusionEngine) -> None:
    handles = [engine.submit(ask(num_inference_steps=900)) for _ in range(8)]
    next(event for event in handles[0].events(30) if event.kind == "step")
    for _ in range(5):
        began = time.monotonic()
        engine.check_health()
        assert time.monotonic() - began < 1.0
    for handle in handles:
        handle.abort()


def test_workers_that_keep_dying_make_the_engine_say_so_and_it_recovers(
    tmp_path: Any, wait_until: Callable[..., None]
) -> None:
    # By name: in vLLM-Omni a dead executor stays dead.
    switch = tmp_path / "broken"
    options = {"max_failures": 2, "max_backoff_s": 0.5}
    made = config(model="multiproc_models:dies_while", model_options={"file": str(switch)}, executor_options=options)
    with DiffusionEngine(made) as engine:
        switch.touch()
        os.kill(pids(engine)[0], signal.SIGKILL)
        [output] = engine.step([ask()], timeout=60)
        assert output.finish_reason == "error"
        assert "times in a row" in str(output.error)
        with pytest.raises(ExecutorError, match="times in a row"):
            engine.check_health()
        assert engine.stats().workers[0].state == "failed"
        switch.unlink()
        wait_until(lambda: engine.executor.is_ready(0), timeout=60)
        assert engine.step([ask()], timeout=60)[0].finish_reason == "finished"
        engine.check_health()


def test_a_worker_that_is_replaced_while_asleep_sleeps_too(wait_until: Callable[..., None]) -> None:
    with DiffusionEngine(config()) as engine:
        engine.sleep(level=2)
        os.kill(pids(engine)[0], signal.SIGKILL)
        handle = engine.submit(ask())
        wait_until(lambda: engine.stats().workers[0].restarts == 1)
        assert engine.collective_rpc(lambda worker: worker._sleep_level) == [2]
        assert not handle.done()
        engine.wake_up()
        assert handle.result(30).finish_reason == "finished"


def test_closing_ends_a_call_that_waits(tmp_path: Any, wait_until: Callable[..., None]) -> None:
    engine = DiffusionEngine(config())
    raised: list[BaseException] = []

    def call() -> None:
        try:
            engine.collective_rpc(calls.wait_at_barrier, args=(str(tmp_path), 60))
        except ExecutorError as error:
            raised.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    wait_until((tmp_path / "here").exists)
    began = time.monotonic()
    engine.close()
    caller.join(10)
    assert not caller.is_alive()
    assert len(raised) == 1
    assert time.monotonic() - began < 10


@pytest.mark.alone
def test_statistics_do_not_wait_for_a_worker_that_is_replaced(engine: DiffusionEngine) -> None:
    before = pids(engine)
    os.kill(before[0], signal.SIGKILL)
    began = time.monotonic()
    stats = engine.stats()
    assert time.monotonic() - began < 1.0
    assert stats.stacking is None
    assert engine.step([ask()], timeout=60)[0].finish_reason == "finished"
    assert engine.stats().stacking is not None


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set as Linux counts memory")
def test_a_request_that_needs_more_memory_than_there_is(engine: DiffusionEngine) -> None:
    # A real limit: the kernel refuses what goes beyond it.
    before = pids(engine)
    engine.collective_rpc(calls.limit_memory, args=(200 << 20,))
    greedy = ask(request_id="greedy", extra_args={"class_labels": [1] * 500_000})
    outputs = engine.step([ask(), greedy, ask()], timeout=60)
    assert [output.finish_reason for output in outputs] == ["finished", "error", "finished"]
    with pytest.raises(OmniError, match=r"greedy(?s:.)*memory"):
        outputs[1].raise_for_error()
    engine.collective_rpc(calls.limit_memory, args=(-1,))
    assert pids(engine) == before, "the worker has survived it"


@pytest.mark.parametrize("sizes", [{}, {"data_parallel_size": 2}, {"cfg_parallel_size": 2}])
def test_a_pipeline_that_draws_from_the_global_generator(sizes: dict[str, int]) -> None:
    pipeline = models.draws()
    pipeline.set_progress_bar_config(disable=True)
    expected = []
    for seed in (5, 6, 7):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            arguments = {"num_inference_steps": 4, "class_labels": [1], "guidance_scale": 4.0, "output_type": "np"}
            expected.append(pipeline(**arguments, generator=generator).images)
    with DiffusionEngine(config(model="multiproc_models:draws", **sizes)) as engine:
        for _ in range(2):
            outputs = engine.step([ask(seed, guidance_scale=4.0) for seed in (5, 6, 7)])
            for output, wanted in zip(outputs, expected, strict=True):
                assert np.abs(output.raise_for_error().images - wanted).max() <= 1e-4
        [alone] = engine.step([ask(5, guidance_scale=4.0)])
        assert np.abs(alone.raise_for_error().images - expected[0]).max() <= 1e-4


def test_whole_requests_of_one_id_are_refused_before_they_are_spread(pair: DiffusionEngine) -> None:
    with pytest.raises(RequestError, match="Two of the requests have the id 'same'"):
        pair.executor.execute_model([ask(seed, request_id="same") for seed in (1, 2)])
    outputs = pair.executor.execute_model([ask(seed, request_id=f"r{seed}") for seed in (1, 2)])
    assert [output.seed for output in outputs] == [1, 2]
