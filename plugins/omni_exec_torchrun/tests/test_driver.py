"""Driver mode: ranks that torch elastic launches give what one process gives; their deaths lose no request."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.errors import ConfigError, ModelLoadError, OmniError, StartupError, WorkerDiedError
from omni_core.forking.warm import warm_fork_server
from omni_exec_torchrun.secret import SECRET_FILE_VARIABLE, SECRET_VARIABLE

FAMILIES: dict[str, dict[str, Any]] = {
    "class_conditional": {"extra_args": {"class_labels": [1]}, "guidance_scale": 4.0, "num_inference_steps": 6},
    "picture": {"prompt": "a red seven", "guidance_scale": 4.0, "num_inference_steps": 6},
}


def requests(family: str, number: int = 3) -> list[OmniDiffusionRequest]:
    return [OmniDiffusionRequest(seed=seed, output_type="np", **FAMILIES[family]) for seed in range(number)]


def config(family: str = "class_conditional", **fields: Any) -> OmniDiffusionConfig:
    fields = {"executor_class": "torchrun", **fields}
    return OmniDiffusionConfig(model=f"omni_core.testing.pipelines:{family}", **fields)


@pytest.fixture(scope="module")
def engine() -> Iterator[DiffusionEngine]:
    with DiffusionEngine(config(cfg_parallel_size=2)) as made:
        yield made


def pids(engine: DiffusionEngine) -> list[int]:
    return [pid for replica in engine.executor.worker_pids() for pid in replica]  # type: ignore[attr-defined]


def control_address(engine: DiffusionEngine) -> tuple[str, int]:
    host, _, port = engine.executor.control_address.rpartition(":")  # type: ignore[attr-defined]
    return host, int(port)


def expected(family: str, number: int = 3) -> list[Any]:
    with DiffusionEngine(config(family, executor_class="inline")) as inline:
        return [output.output["images"] for output in inline.step(requests(family, number))]


def assert_same(outputs: list[Any], wanted: list[Any]) -> None:
    for output, one in zip(outputs, wanted, strict=True):
        assert np.abs(output.raise_for_error().output["images"] - one).max() <= 1e-4


def test_two_ranks_give_what_one_process_gives(engine: DiffusionEngine) -> None:
    assert engine.collective_rpc(lambda worker: (worker.replica, worker.rank)) == [(0, 0), (0, 1)]
    assert_same(engine.step(requests("class_conditional")), expected("class_conditional"))
    split = engine.collective_rpc(lambda worker: worker.stats().refused)
    assert split == [{}, {}], "no kind of call was refused: the rows were split"


def test_every_rank_has_random_numbers_of_its_own(engine: DiffusionEngine) -> None:
    def draw(_worker: Any) -> tuple[float, float]:
        return random.random(), float(np.random.rand())

    for numbers in zip(*engine.collective_rpc(draw), strict=True):
        assert len({*numbers}) == 2


def test_other_parallel_sizes_give_the_same() -> None:
    wanted = expected("picture")
    for sizes in ({"data_parallel_size": 2}, {"data_parallel_size": 2, "cfg_parallel_size": 2}):
        with DiffusionEngine(config("picture", **sizes)) as engine:
            assert len(pids(engine)) == sizes.get("cfg_parallel_size", 1) * 2
            assert_same(engine.step(requests("picture")), wanted)


def test_ten_ranks_killed_in_mid_request(engine: DiffusionEngine, wait_until: Callable[..., None]) -> None:
    wanted = expected("class_conditional", 1)
    [short] = requests("class_conditional", 1)
    chance = random.Random(5)  # which rank to kill is no secret
    seen: set[int] = set()
    for _ in range(10):
        wait_until(lambda: len(pids(engine)) == 2 and seen.isdisjoint(pids(engine)), 60.0)
        handle = engine.submit(OmniDiffusionRequest(seed=0, num_inference_steps=150, extra_args={"class_labels": [1]}))
        next(event for event in handle.events(timeout=60) if event.kind == "step")
        victims = pids(engine)
        seen.update(victims)
        os.kill(chance.choice(victims), signal.SIGKILL)
        output = handle.result(timeout=90)
        assert output.finish_reason == "finished"
        assert output.metrics.num_retries == 1
    assert_same(engine.step([short]), wanted)


def test_strangers_at_the_control_port_harm_nothing(
    engine: DiffusionEngine, caplog: pytest.LogCaptureFixture, wait_until: Callable[..., None]
) -> None:
    handle = engine.submit(OmniDiffusionRequest(seed=0, num_inference_steps=60, extra_args={"class_labels": [1]}))
    for what in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"omnitrn1" + os.urandom(400)):
        with socket.create_connection(control_address(engine), 5.0) as stranger:
            stranger.sendall(what)
            if what:
                stranger.settimeout(15.0)
                with contextlib.suppress(ConnectionResetError):  # it was sent more than it wanted to read
                    while stranger.recv(4096):
                        pass
    assert handle.result(timeout=60).finish_reason == "finished"
    wait_until(lambda: "refused" in caplog.text)
    assert_same(engine.step(requests("class_conditional", 1)), expected("class_conditional", 1))


def test_nothing_listens_beyond_loopback(engine: DiffusionEngine) -> None:
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listeners = [c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listeners, "the control port at least"
    assert {ip for ip in listeners if ip not in ("127.0.0.1", "::1")} == set()


def test_the_secret_is_in_no_environment_and_no_command_line(engine: DiffusionEngine) -> None:
    secret = engine.executor._secret.decode()  # type: ignore[attr-defined]
    for process in psutil.Process().children(recursive=True):
        assert secret not in " ".join(process.cmdline())
        assert secret not in str(process.environ())


def test_a_launcher_that_is_killed_is_replaced(engine: DiffusionEngine, wait_until: Callable[..., None]) -> None:
    before = pids(engine)
    [launcher] = {psutil.Process(pid).ppid() for pid in before}
    os.kill(launcher, signal.SIGKILL)
    wait_until(lambda: len(pids(engine)) == 2 and not set(pids(engine)) & set(before), 60.0)
    assert_same(engine.step(requests("class_conditional", 1), timeout=60), expected("class_conditional", 1))


def test_a_launcher_is_replaced_though_the_fork_server_has_ended(wait_until: Callable[..., None]) -> None:
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(warm_fork_server()).options
        with DiffusionEngine(config(executor_options=options)) as engine:
            before = pids(engine)
            stack.close()  # which ends the launcher too
            wait_until(lambda: bool(pids(engine)) and not set(pids(engine)) & set(before), 60.0)
            assert_same(engine.step(requests("class_conditional", 1), timeout=60), expected("class_conditional", 1))
        with pytest.raises(StartupError, match="no fork server to share"):
            DiffusionEngine(config(executor_options=options))


def test_more_deaths_than_elastic_restarts() -> None:
    with DiffusionEngine(config(executor_options={"max_restarts": 0})) as engine:
        for _ in range(2):
            handle = engine.submit(
                OmniDiffusionRequest(seed=0, num_inference_steps=150, extra_args={"class_labels": [1]})
            )
            next(event for event in handle.events(timeout=60) if event.kind == "step")
            os.kill(pids(engine)[0], signal.SIGKILL)
            assert handle.result(timeout=90).finish_reason == "finished"


def test_a_model_that_cannot_be_loaded_says_so() -> None:
    with pytest.raises(ModelLoadError, match="nowhere"):
        DiffusionEngine(OmniDiffusionConfig(executor_class="torchrun", model="/nowhere", cfg_parallel_size=2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"executor_options": {"nnodes": "2"}}, "rdzv_endpoint and master_addr"),
        ({"executor_options": {"nnodes": "two"}}, "nnodes"),
        ({"executor_options": {"rdzv_endpoint": "127.0.0.1:1"}}, "nnodes"),
        ({"executor_options": {"nproc_per_node": 3}, "cfg_parallel_size": 2}, "2 ranks"),
        ({"executor_options": {"backend": "mpi"}}, "backend"),
        ({"ring_degree": 2}, "ring"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(
    fields: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(OmniError, match=message):
        DiffusionEngine(config(**fields))
    assert "clean-up" not in caplog.text


def test_several_nodes_need_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SECRET_VARIABLE, SECRET_FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    options = {"nnodes": "2", "rdzv_endpoint": "127.0.0.1:29511", "master_addr": "127.0.0.1"}
    with pytest.raises(ConfigError, match="openssl rand"):
        DiffusionEngine(config(data_parallel_size=2, executor_options=options))


def test_ranks_that_share_the_sequence_give_the_same() -> None:
    request = OmniDiffusionRequest(
        prompt="a cat",
        seed=1,
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=3.0,
        output_type="np",
        extra_args={"num_frames": 5},
    )
    frames = []
    for sizes in ({"executor_class": "inline"}, {"ulysses_degree": 2}):
        with DiffusionEngine(config("video", **sizes)) as engine:
            [output] = engine.step([request])
            frames.append(np.asarray(output.raise_for_error().output["frames"]))
    assert np.abs(frames[0] - frames[1]).max() <= 1e-4


def test_an_abort_takes_effect_on_all_ranks_alike(engine: DiffusionEngine) -> None:
    long = {"num_inference_steps": 900, "extra_args": {"class_labels": [1]}, "guidance_scale": 4.0}
    aborted = engine.submit(OmniDiffusionRequest(seed=9, **long))
    next(event for event in aborted.events(timeout=60) if event.kind == "step")
    others = engine.submit_all(requests("class_conditional"))
    aborted.abort()
    assert aborted.result(timeout=60).finish_reason == "aborted"
    assert_same([handle.result(timeout=60) for handle in others], expected("class_conditional"))
    assert engine.collective_rpc(lambda worker: len(worker._runner._tasks)) == [0, 0]
    assert not [event for handle in others for event in handle.past_events() if event.kind == "retrying"]


def test_a_rank_that_is_stopped_is_replaced_with_its_replica() -> None:
    with DiffusionEngine(config(cfg_parallel_size=2, step_timeout_s=4.0)) as engine:
        handle = engine.submit(OmniDiffusionRequest(seed=0, num_inference_steps=150, extra_args={"class_labels": [1]}))
        next(event for event in handle.events(timeout=60) if event.kind == "step")
        stopped = pids(engine)
        os.kill(stopped[1], signal.SIGSTOP)
        output = handle.result(timeout=90)
        assert output.finish_reason == "finished"
        assert output.metrics.num_retries == 1
        assert not set(stopped) & set(pids(engine))
        assert not any(psutil.pid_exists(pid) for pid in stopped)


def test_the_rank_that_died_is_named_and_not_the_one_that_missed_it() -> None:
    with DiffusionEngine(config(cfg_parallel_size=2, max_retries=0)) as engine:
        handle = engine.submit(OmniDiffusionRequest(seed=0, num_inference_steps=900, extra_args={"class_labels": [1]}))
        next(event for event in handle.events(timeout=60) if event.kind == "step")
        os.kill(pids(engine)[1], signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match="worker 1 of replica 0.*SIGKILL"):
            handle.result(timeout=30).raise_for_error()
