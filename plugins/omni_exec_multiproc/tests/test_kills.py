"""A worker is killed again and again while requests run: all of them finish, and each with the right picture."""

from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.errors import WorkerDiedError
from omni_core.testing.injection import fault

MODEL = "omni_core.testing.pipelines:faulty"
REQUESTS = 100


def ask(seed: int, **fields: object) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(
        request_id=f"r{seed}", prompt="a", seed=seed, num_inference_steps=30, output_type="np", **fields
    )


def test_kills_while_a_hundred_requests_run() -> None:
    requests = [ask(seed) for seed in range(REQUESTS)]
    with DiffusionEngine(OmniDiffusionConfig(model=MODEL, log_level="error")) as engine:
        expected = [output.raise_for_error().output["images"] for output in engine.step(requests)]

    poison = ask(REQUESTS, extra_args={"fault": fault("exit", step=3)})
    # One that is killed by chance is killed again by chance now and then, the more so on a slow machine.
    config = OmniDiffusionConfig(
        executor_class="multiproc", data_parallel_size=2, model=MODEL, log_level="error", max_retries=5
    )
    randomness = random.Random(1)
    with DiffusionEngine(config) as engine:
        over = threading.Event()
        kills: list[int] = []

        def kill() -> None:
            while not over.wait(2.0):
                # One that has work or could have it: a start that is killed again and again never ends.
                workers = [worker for worker in engine.executor.worker_stats() if worker.state in ("idle", "busy")]
                pids = [worker.pid for worker in workers if worker.pid is not None]
                if pids:
                    kills.append(randomness.choice(pids))
                    os.kill(kills[-1], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            # The poison is in the middle of them. Waves of requests, so that the kills meet work however fast it is.
            retries = 0
            for _ in range(20):
                handles = engine.submit_all([*requests[:50], poison, *requests[50:]])
                outputs = [handle.result(120) for handle in handles]
                error = outputs.pop(50).error
                assert isinstance(error, WorkerDiedError)
                assert f"'r{REQUESTS}'" in str(error)
                for output, wanted in zip(outputs, expected, strict=True):
                    assert np.abs(output.raise_for_error().output["images"] - wanted).max() <= 1e-4
                    retries += output.metrics.num_retries
                if len(kills) >= 5:
                    break
        finally:
            over.set()
            killer.join()
        assert len(kills) >= 5
        assert retries > 0, "the kills met no work"
