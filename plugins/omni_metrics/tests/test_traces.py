"""What a real collector receives: one trace for a request, with the right parents and times, however it ended."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from collector import Collector, attributes_of, seconds_of
from engines import FAULTY, PATIENCE_S, ask, traced
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from omni_core import OmniRequestOutput
from omni_core.testing.injection import begun_file, fault
from omni_metrics.options import MetricsOptions

TRACE, CALLER = "a1" * 16, "b2" * 8
CONTEXT = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "acme=1"}
STAGES = ["queue", "encode", "denoise", "decode"]


def assert_gapless(root: Span, children: list[Span]) -> None:
    assert children[0].start_time_unix_nano == root.start_time_unix_nano
    for one, following in itertools.pairwise(children):
        assert one.end_time_unix_nano == following.start_time_unix_nano
    assert abs(children[-1].end_time_unix_nano - root.end_time_unix_nano) < 1000


def assert_measured(trace: Any, output: OmniRequestOutput) -> None:
    """Each stage took what the engine has measured."""
    for name in STAGES:
        assert seconds_of(trace.child(name)) == pytest.approx(getattr(output.metrics, f"{name}_s"), abs=1e-3)


def test_one_request_under_the_span_of_its_caller(collector: Collector) -> None:
    before = time.time()
    with traced() as engine:
        [output] = engine.step([ask(7, metadata=CONTEXT, num_outputs_per_prompt=2)], PATIENCE_S)
    after = time.time()
    [trace] = collector.traces(1)
    root = trace.root
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.trace_state) == (TRACE, CALLER, "acme=1")
    assert root.kind == Span.SPAN_KIND_SERVER
    assert root.name == "generate_content omni/digits"
    assert trace.names == STAGES
    assert_gapless(root, trace.children)
    assert_measured(trace, output)
    assert before <= root.start_time_unix_nano / 1e9 <= root.end_time_unix_nano / 1e9 <= after
    assert seconds_of(root) == pytest.approx(output.metrics.total_s, abs=1e-3)
    assert attributes_of(root) == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "omni",
        "gen_ai.request.model": "omni/digits",
        "gen_ai.request.seed": 7,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.id": output.request_id,
        "gen_ai.response.finish_reasons": ["finished"],
        "gen_ai.output.type": "image",
        "omni.steps": 6,
        "omni.denoiser_calls": output.metrics.num_calls,
        "omni.rows.mean": output.metrics.mean_rows,
        "omni.retries": 0,
        "omni.priority": 0,
    }
    assert root.status.code == Status.STATUS_CODE_UNSET
    assert not root.events
    assert collector.resources[0]["service.name"] == "omni"


def test_a_program_that_ends_without_closing_its_engine(collector: Collector) -> None:
    code = (
        "from omni_core import DiffusionEngine, OmniDiffusionRequest as Request; engine = DiffusionEngine(); "
        "engine.step([Request(prompt='a', num_inference_steps=2)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr
    [trace] = collector.traces(1)
    assert trace.names == STAGES


def test_without_a_caller_each_request_is_a_trace_of_its_own(collector: Collector, monkeypatch: Any) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    with traced() as engine:
        engine.step([ask(1), ask(2, metadata={"traceparent": "nonsense"})], PATIENCE_S)
    traces = collector.traces(2)
    assert len({trace.root.trace_id for trace in traces}) == 2
    for trace in traces:
        assert (trace.root.parent_span_id, trace.root.kind) == (b"", Span.SPAN_KIND_INTERNAL)
        assert trace.names == STAGES
    assert {one["service.name"] for one in collector.resources} == {"pictures"}


def test_a_caller_that_is_not_sampled_costs_nothing(collector: Collector) -> None:
    with traced() as engine:
        engine.step([ask(1, metadata={"traceparent": f"00-{TRACE}-{CALLER}-00"})], PATIENCE_S)
        engine.step([ask(2, metadata={"traceparent": f"00-{TRACE}-{CALLER}-01"})], PATIENCE_S)
    [trace] = collector.traces(1)
    assert attributes_of(trace.root)["gen_ai.request.seed"] == 2


def test_a_request_across_the_death_of_its_worker(collector: Collector, tmp_path: Path, wait_until: Any) -> None:
    held = tmp_path / "held"
    waiting = fault("wait", once=tmp_path / "once", file=held)
    with traced(executor_class="multiproc", model=FAULTY) as engine:
        handle = engine.submit(ask(3, metadata=CONTEXT, extra_args={"fault": waiting}))
        wait_until(begun_file(held).exists, PATIENCE_S)
        [worker] = engine.executor.worker_stats()
        assert worker.pid is not None
        killed_at = time.time()
        os.kill(worker.pid, signal.SIGKILL)
        output = handle.result(PATIENCE_S).raise_for_error()
    [trace] = collector.traces(1)
    root = trace.root
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, CALLER)
    assert trace.names == ["queue", "lost run", "queue", "encode", "denoise", "decode"]
    assert_gapless(root, trace.children)
    lost = trace.child("lost run")
    assert lost.start_time_unix_nano / 1e9 < killed_at < lost.end_time_unix_nano / 1e9 < killed_at + 5
    assert lost.status.code == Status.STATUS_CODE_ERROR
    assert "SIGKILL" in lost.status.message
    for name in STAGES[1:]:
        assert seconds_of(trace.child(name)) == pytest.approx(getattr(output.metrics, f"{name}_s"), abs=1e-3)
    [event] = root.events
    assert event.name == "retry"
    assert event.time_unix_nano == lost.end_time_unix_nano
    about = attributes_of(event)
    assert (about["omni.retry"], about["omni.replica"]) == (1, 0)
    assert about["omni.reason"] == lost.status.message
    assert root.status.code == Status.STATUS_CODE_UNSET, "it finished in the end"
    assert attributes_of(root)["omni.retries"] == 1


def test_a_request_that_its_worker_dies_of(collector: Collector) -> None:
    with traced(executor_class="multiproc", model=FAULTY, max_retries=1) as engine:
        [output] = engine.step([ask(3, extra_args={"fault": fault("exit")})], PATIENCE_S)
    assert output.error is not None
    [trace] = collector.traces(1)
    assert trace.names == ["queue", "lost run", "lost run"]
    assert_gapless(trace.root, trace.children)
    assert [event.name for event in trace.root.events] == ["retry", "exception"]
    assert trace.root.status.message == output.error.message
    assert attributes_of(trace.root)["error.type"] == "WorkerDiedError"


def test_an_error_has_the_traceback_of_the_worker(collector: Collector) -> None:
    with traced(model=FAULTY) as engine:
        engine.step([ask(3, extra_args={"fault": fault("raise", step=4)})], PATIENCE_S)
    [trace] = collector.traces(1)
    assert trace.root.status.code == Status.STATUS_CODE_ERROR
    [event] = trace.root.events
    about = attributes_of(event)
    assert (event.name, about["exception.type"]) == ("exception", "PipelineError")
    assert "InjectedError" in about["exception.message"]
    assert "injection.py" in about["exception.stacktrace"]
    assert attributes_of(trace.root)["gen_ai.response.finish_reasons"] == ["error"]
    assert trace.names[:3] == STAGES[:3]


def test_an_abort_and_a_time_out(collector: Collector, wait_until: Any) -> None:
    with traced(max_num_seqs=1) as engine:
        running = engine.submit(ask(1, num_inference_steps=5000))
        behind = engine.submit(ask(2, timeout_s=0.2))
        assert behind.result(PATIENCE_S).finish_reason == "timeout"
        running.abort()
        running.result(PATIENCE_S)
    traces = {attributes_of(trace.root)["gen_ai.request.seed"]: trace for trace in collector.traces(2)}
    [event] = traces[1].root.events
    assert event.name == "abort"
    assert "aborted" in attributes_of(event)["omni.reason"]
    assert traces[1].root.status.code == Status.STATUS_CODE_UNSET
    assert traces[2].names == ["queue"], "it never began"
    assert 0.2 <= seconds_of(traces[2].root) < PATIENCE_S
    assert attributes_of(traces[2].root)["error.type"] == "RequestTimeoutError"


def test_forwards_and_prompts_are_for_those_who_ask(collector: Collector) -> None:
    with traced(MetricsOptions(forwards=True, prompts=True)) as engine:
        [output] = engine.step([ask(1, prompt="a red seven", negative_prompt="blue")], PATIENCE_S)
    [trace] = collector.traces(1)
    about = attributes_of(trace.root)
    assert (about["omni.prompt"], about["omni.negative_prompt"]) == ("a red seven", "blue")
    denoise = trace.child("denoise")
    forwards = trace.below(denoise)
    assert [one.name for one in forwards] == ["forward"] * output.metrics.num_calls
    assert {attributes_of(one)["omni.rows"] for one in forwards} == {2}
    assert sum(map(seconds_of, forwards)) <= seconds_of(denoise) * 1.05
    for one, following in itertools.pairwise(forwards):
        assert one.end_time_unix_nano <= following.start_time_unix_nano
