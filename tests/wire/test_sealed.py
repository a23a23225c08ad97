from __future__ import annotations

import sys
import threading
import types
from typing import Any

import pytest

from omni_core import OmniDiffusionRequest, OmniRequestOutput, SchedulerOutput, StepOutput, serialization
from omni_core.errors import PipelineError, RequestError
from omni_core.outputs import RequestMetrics
from omni_core.wire.sealed import open_outputs, open_requests, seal_outputs, seal_requests


def sent(value: Any) -> Any:
    """What arrives of a value in another process."""
    return serialization.loads(*serialization.dumps(value))


def make_unreadable(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An object of a class that can be imported here until it is sent, and not any more after that."""
    module = types.ModuleType("only_here")
    exec("class Thing:\n    pass\n", vars(module))  # its class must say that it is of that module
    monkeypatch.setitem(sys.modules, "only_here", module)
    return module.Thing()


def test_requests_that_cannot_be_sent_are_left_out_and_the_others_arrive() -> None:
    good = OmniDiffusionRequest(prompt="a", request_id="good")
    bad = OmniDiffusionRequest(prompt="b", request_id="bad", extra_args={"x": threading.Lock()})
    step, refused = seal_requests(SchedulerOutput(new_requests=[good, bad], waves=[("good", "bad")]))
    [output] = refused
    assert (output.request_id, output.seed, output.finish_reason) == ("bad", bad.seed, "error")
    with pytest.raises(RequestError, match=r"'bad' cannot be sent to a worker process: a lock .*lock"):
        output.raise_for_error()
    opened, unread = open_requests(sent(step))
    assert unread == []
    assert opened.new_requests == [good]
    assert opened.waves == [("good", "bad")]


def test_requests_that_cannot_be_read_are_left_out_and_the_others_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    good = OmniDiffusionRequest(prompt="a", request_id="good")
    bad = OmniDiffusionRequest(request_id="bad", seed=7, extra_args={"x": make_unreadable(monkeypatch)})
    step, refused = seal_requests(SchedulerOutput(new_requests=[bad, good]))
    assert refused == []
    data, buffers = serialization.dumps(step)
    monkeypatch.delitem(sys.modules, "only_here")
    opened, unread = open_requests(serialization.loads(data, buffers))
    assert opened.new_requests == [good]
    assert [(one.request_id, one.seed, one.finish_reason) for one in unread] == [("bad", 7, "error")]
    with pytest.raises(RequestError, match=r"'bad' cannot be read in the worker: ModuleNotFoundError.*only_here"):
        unread[0].raise_for_error()


@pytest.mark.parametrize("wrap", [lambda outputs: StepOutput(finished=outputs), list], ids=["step", "list"])
def test_outputs_that_cannot_be_sent_or_read_fail_alone(monkeypatch: pytest.MonkeyPatch, wrap: Any) -> None:
    metrics = RequestMetrics(num_steps=3)
    outputs = [
        OmniRequestOutput("good", 1, "finished", {"images": [b"x" * 10_000]}, metrics=metrics),
        OmniRequestOutput("unsent", 2, "finished", {"images": [threading.Lock()]}, metrics=metrics),
        OmniRequestOutput("unread", 3, "finished", {"images": make_unreadable(monkeypatch)}),
        OmniRequestOutput("aborted", 4, "aborted"),
    ]
    data, buffers = serialization.dumps(seal_outputs(wrap(outputs)))
    monkeypatch.delitem(sys.modules, "only_here")
    opened = open_outputs(serialization.loads(data, buffers))
    found = opened.finished if isinstance(opened, StepOutput) else opened
    assert [(one.request_id, one.seed) for one in found] == [("good", 1), ("unsent", 2), ("unread", 3), ("aborted", 4)]
    assert (found[0], found[3]) == (outputs[0], outputs[3])
    with pytest.raises(PipelineError, match=r"'unsent': its output cannot be sent from the worker: a lock"):
        found[1].raise_for_error()
    assert found[1].metrics == metrics
    with pytest.raises(PipelineError, match=r"'unread': its output cannot be read here: ModuleNotFoundError"):
        found[2].raise_for_error()


def test_other_results_pass_as_they_are() -> None:
    for value in (None, 3, [], [1, 2], StepOutput(started=["a"])):
        assert open_outputs(sent(seal_outputs(value))) == value
