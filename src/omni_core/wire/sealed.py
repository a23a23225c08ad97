"""Pickles requests and outputs one by one, so that one that cannot be pickled or unpickled fails alone.

Arguments and results may be of any type, also of types that cannot be pickled or that the other process cannot import.
Inside the pickle of a whole step, one such value would fail all requests of the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omni_core import serialization
from omni_core.calls import WorkerCall, WorkerReply
from omni_core.error_text import described_error
from omni_core.errors import OmniError, PipelineError, RequestError, RPCError
from omni_core.outputs import OmniRequestOutput, SchedulerOutput, StepOutput
from omni_core.request import OmniDiffusionRequest


@dataclass(slots=True)
class _Sealed:
    """A pickled request or output.

    Attributes:
        request_id: Id of the request.
        seed: Seed of the request.
        data: The pickle.
        buffers: The out-of-band buffers of the pickle.
    """

    request_id: str
    seed: int
    data: bytes
    buffers: Sequence[Any]


def seal_requests(scheduler_output: SchedulerOutput) -> tuple[SchedulerOutput, list[OmniRequestOutput]]:
    """Return the step with pickled requests, and a failed output for each new request that cannot be pickled."""
    if not scheduler_output.new_requests:
        return scheduler_output, []
    sealed: list[Any] = []
    refused: list[OmniRequestOutput] = []
    for request in scheduler_output.new_requests:
        try:
            sealed.append(_seal(request))
        except RPCError as error:
            refused.append(_cannot_be_sent(request, error))
    return dataclasses.replace(scheduler_output, new_requests=sealed), refused


def without_unpicklable(scheduler_output: SchedulerOutput) -> tuple[SchedulerOutput, list[OmniRequestOutput]]:
    """Return the step without the new requests that cannot be pickled, and a failed output for each of these."""
    _, refused = seal_requests(scheduler_output)
    names = {output.request_id for output in refused}
    sendable = [request for request in scheduler_output.new_requests if request.request_id not in names]
    return dataclasses.replace(scheduler_output, new_requests=sendable), refused


def open_requests(scheduler_output: SchedulerOutput) -> tuple[SchedulerOutput, list[OmniRequestOutput]]:
    """Undo `seal_requests`. Returns also a failed output for each new request that cannot be unpickled."""
    opened: list[OmniDiffusionRequest] = []
    refused: list[OmniRequestOutput] = []
    sealed: Any
    for sealed in scheduler_output.new_requests:
        request, error = _open(sealed)
        if error is None:
            opened.append(request)
            continue
        reason = RequestError(
            f"Request {sealed.request_id!r} cannot be read in the worker: {error}. Use arguments of types that the "
            "workers can import."
        )
        refused.append(_failed(sealed, reason))
    return dataclasses.replace(scheduler_output, new_requests=opened), refused


class StepOpener:
    """Unpickles the new requests of steps in a worker process. Failed ones are reported in the reply of the step."""

    def __init__(self) -> None:
        # For the running step: the number of its call, and the outputs of requests that could not be unpickled.
        self._refused: tuple[int, list[OmniRequestOutput]] = (-1, [])

    def open(self, call: WorkerCall) -> WorkerCall:
        """Return a received call with its requests unpickled."""
        if call.args and isinstance(call.args[0], SchedulerOutput):
            step, refused = open_requests(call.args[0])
            call.args = (step, *call.args[1:])
            self._refused = (call.call_id, refused)
        return call

    def complete(self, reply: WorkerReply) -> WorkerReply:
        """Add the outputs of requests that could not be unpickled to the reply of their step."""
        call_id, refused = self._refused
        if refused and reply.call_id == call_id and isinstance(reply.value, StepOutput):
            reply.value.finished.extend(refused)
            self._refused = (-1, [])
        return reply


def seal_outputs(value: Any) -> Any:
    """Pickle each output in the result of a call. One that cannot be pickled is replaced by a failed output."""
    if isinstance(value, StepOutput) and value.finished:
        return dataclasses.replace(value, finished=[_seal_output(output) for output in value.finished])
    if type(value) is list and value and isinstance(value[0], OmniRequestOutput):
        return [_seal_output(output) for output in value]
    return value


def open_outputs(value: Any) -> Any:
    """Undo `seal_outputs`. An output that cannot be unpickled is replaced by a failed output."""
    if isinstance(value, StepOutput):
        value.finished = [_open_output(output) for output in value.finished]
    elif type(value) is list and value and isinstance(value[0], _Sealed):
        return [_open_output(output) for output in value]
    return value


def _seal(value: Any) -> _Sealed:
    return _Sealed(value.request_id, value.seed, *serialization.dumps(value))


def _open(sealed: Any) -> tuple[Any, str | None]:
    if not isinstance(sealed, _Sealed):
        return sealed, None
    try:
        return serialization.loads(sealed.data, sealed.buffers), None
    except Exception as error:  # whatever unpickling raises
        return None, described_error(error)


def _seal_output(output: Any) -> Any:
    try:
        return _seal(output)
    except RPCError as error:
        reason = PipelineError(
            f"Request {output.request_id!r}: its output cannot be sent from the worker: {error}. The pipeline must "
            "return what can be pickled; under executor_class='inline' it may be anything."
        )
        return OmniRequestOutput(output.request_id, output.seed, "error", error=reason, metrics=output.metrics)


def _open_output(sealed: Any) -> Any:
    output, error = _open(sealed)
    if error is None:
        return output
    reason = PipelineError(
        f"Request {sealed.request_id!r}: its output cannot be read here: {error}. This program must be able to import "
        "the types of what the pipeline returns."
    )
    return _failed(sealed, reason)


def _failed(sealed: _Sealed, error: OmniError) -> OmniRequestOutput:
    return OmniRequestOutput(sealed.request_id, sealed.seed, "error", error=error)


def _cannot_be_sent(request: OmniDiffusionRequest, error: RPCError) -> OmniRequestOutput:
    reason = RequestError(
        f"Request {request.request_id!r} cannot be sent to a worker process: {error}. Use arguments that "
        "can be pickled, or executor_class='inline'."
    )
    return OmniRequestOutput.failed(request, reason)
