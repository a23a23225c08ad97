"""A worker in a long step reads nothing: it is busy and not dead, and holds up nobody but those who need it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.testing import calls
from omni_core.testing.injection import begun_file, fault

MODEL = "omni_core.testing.pipelines:faulty"
PATIENCE_S = 60.0


def make_engine(**fields: Any) -> DiffusionEngine:
    return DiffusionEngine(
        OmniDiffusionConfig(model=MODEL, executor_class="multiproc", executor_options={"send_timeout_s": 0.5}, **fields)
    )


def ask(seed: int = 1, **fields: Any) -> OmniDiffusionRequest:
    extra_args = {"fault": fields.pop("fault")} if "fault" in fields else {}
    values = {"prompt": "a red seven", "height": 32, "width": 32, "num_inference_steps": 4, **fields}
    return OmniDiffusionRequest(seed=seed, extra_args=extra_args, **values)


def test_a_full_socket_is_no_sign_of_death(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    file = tmp_path / "go on"
    with make_engine() as engine:
        handle = engine.submit(ask(fault=fault("wait", file=file)))
        wait_until(begun_file(file).exists, timeout=PATIENCE_S)
        lengths: list[int] = []

        def call(size: int) -> None:
            lengths.extend(len(value) for value in engine.collective_rpc(calls.echo, args=(bytes(size),)))

        # As many as fill the socket, and one that is larger than it.
        sizes = [10_000_000, *([2000] * 300)]
        threads = [threading.Thread(target=call, args=(size,)) for size in sizes]
        for thread in threads:
            thread.start()
        # For several times send_timeout_s nothing is read. Time itself is what is tried.
        threading.Event().wait(2.5)
        assert not handle.done()
        assert engine.stats(timeout=0.1).workers[0].state == "busy"
        engine.check_health()
        file.touch()
        assert handle.result(PATIENCE_S).raise_for_error().metrics.num_retries == 0
        for thread in threads:
            thread.join(PATIENCE_S)
        assert sorted(lengths) == sorted(sizes)
        assert engine.stats().workers[0].restarts == 0


def test_a_worker_that_is_stopped_holds_up_no_request_that_another_can_serve() -> None:
    with make_engine(data_parallel_size=2, max_num_seqs=1) as engine:
        [[first], [second]] = engine.executor.worker_pids()  # type: ignore[attr-defined]
        long = [engine.submit(ask(num_inference_steps=100_000)) for _ in range(2)]
        for handle in long:
            next(event for event in handle.events(PATIENCE_S) if event.kind == "step")
        os.kill(first, signal.SIGSTOP)
        try:
            # Each lets the steps that run end early, which the stopped one never hears.
            others = [engine.submit(ask(priority=-1)) for _ in range(2000)]
            began = time.monotonic()
            urgent = engine.submit(ask(7, priority=5)).result(PATIENCE_S)
            assert time.monotonic() - began < 5.0
            urgent.raise_for_error()
            assert [one.pid for one in engine.stats(timeout=0.0).workers] == [first, second], "none was replaced"
        finally:
            os.kill(first, signal.SIGCONT)
        engine.abort([handle.request_id for handle in (*long, *others)])
        for handle in (*long, *others):
            handle.result(PATIENCE_S)
