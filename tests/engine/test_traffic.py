"""An hour's worth of random traffic: nothing lost, nothing twice, nothing left in memory."""

from __future__ import annotations

import gc
from typing import Any

import psutil
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from omni_core import (
    DiffusionEngine,
    OmniDiffusionConfig,
    OmniDiffusionRequest,
    PluginRegistry,
    RequestHandle,
    hookimpl,
)
from omni_core.errors import EngineOverloadedError, RequestError
from omni_core.worker.task.task import PipelineTask
from small_pipelines import images

PIPELINE = images.ddpm()
MAX_NUM_SEQS = 3
MAX_WAITING = 40


class Ends:
    """Counts how often each request was reported to have ended."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    @hookimpl
    def omni_request_finished(self, output: Any) -> None:
        self.of[output.request_id] = self.of.get(output.request_id, 0) + 1

    @hookimpl
    def omni_request_failed(self, request_id: str) -> None:
        self.of[request_id] = self.of.get(request_id, 0) + 1


class Traffic(RuleBasedStateMachine):
    """Anything that callers may do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = Ends()
        plugins = PluginRegistry()
        plugins.register(self.ends)
        config = OmniDiffusionConfig(max_num_seqs=MAX_NUM_SEQS, max_waiting=MAX_WAITING, log_level="error")
        self.engine = DiffusionEngine(config, pipeline=PIPELINE, plugins=plugins)
        self.handles: dict[str, RequestHandle] = {}
        self.aborted: set[str] = set()
        self.hasty: set[str] = set()
        self.asleep = False

    def submit(self, **fields: Any) -> str | None:
        name = f"r{len(self.handles)}"
        try:
            self.handles[name] = self.engine.submit(OmniDiffusionRequest(request_id=name, **fields))
        except EngineOverloadedError:
            assert sum(not handle.done() for handle in self.handles.values()) >= MAX_WAITING
            return None
        return name

    @rule(
        steps=st.integers(1, 12),
        seed=st.integers(0, 5),
        priority=st.integers(-1, 1),
        outputs=st.integers(1, 3),
        preview=st.none() | st.integers(1, 4),
    )
    def ask(self, steps: int, seed: int, priority: int, outputs: int, preview: int | None) -> None:
        self.submit(
            num_inference_steps=steps,
            seed=seed,
            priority=priority,
            num_outputs_per_prompt=outputs,
            preview_every=preview,
        )

    @rule(steps=st.integers(1, 300), timeout_s=st.sampled_from([1e-6, 0.001, 0.01]))
    def ask_in_haste(self, steps: int, timeout_s: float) -> None:
        name = self.submit(num_inference_steps=steps, timeout_s=timeout_s, seed=1)
        if name is not None:
            self.hasty.add(name)

    @rule(fields=st.sampled_from([{"prompt": "x"}, {"extra_args": {"nonsense": 1}}, {"num_inference_steps": 0}]))
    def ask_badly(self, fields: dict[str, Any]) -> None:
        with pytest.raises(RequestError):
            self.engine.submit(OmniDiffusionRequest(**fields))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.handles)))
        self.aborted.add(name)
        self.handles[name].abort()

    @rule()
    def sleep(self) -> None:
        self.engine.sleep()
        self.asleep = True

    @rule()
    def wake_up(self) -> None:
        self.engine.wake_up()
        self.asleep = False

    @rule()
    def call(self) -> None:
        assert self.engine.collective_rpc("check_health", timeout=30) == [None]
        assert self.engine.stats().running <= MAX_NUM_SEQS

    @precondition(lambda self: self.handles and not self.asleep)
    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        self.handles[data.draw(st.sampled_from(sorted(self.handles)))].result(60)

    def teardown(self) -> None:
        try:
            self.engine.wake_up()
            for name, handle in self.handles.items():
                output = handle.result(60)
                allowed = {"finished"}
                if name in self.aborted:
                    allowed.add("aborted")
                if name in self.hasty:
                    allowed.add("timeout")
                assert output.finish_reason in allowed
                kinds = [event.kind for event in handle.past_events()]
                assert kinds.count("finished") == kinds.count("queued") == 1
                assert kinds[-1] == "finished"
            stats = self.engine.stats()
            assert (stats.waiting, stats.running, stats.parked) == (0, 0, 0)
            assert sum(stats.ended.values()) == len(self.handles)
            assert self.ends.of == dict.fromkeys(self.handles, 1)
        finally:
            self.engine.close()


def alive() -> set[tuple[str, int]]:
    gc.collect()
    kinds = (PipelineTask, RequestHandle, DiffusionEngine)
    return {(type(thing).__name__, id(thing)) for thing in gc.get_objects() if type(thing) in kinds}


def test_random_traffic(request: pytest.FixtureRequest) -> None:
    process = psutil.Process()
    others = alive()  # what pytest keeps of other tests

    def play(examples: int) -> float:
        run_state_machine_as_test(
            Traffic, settings=settings(max_examples=examples, stateful_step_count=40, deadline=None)
        )
        gc.collect()
        return process.memory_info().rss / 2**20

    before = play(5)
    # By night up to 4,000 actions, in about a minute and a half.
    after = play(100 if request.config.getoption("--nightly") else 12)
    assert alive() - others == set()
    assert after - before < 50, "memory grows with the number of requests"
