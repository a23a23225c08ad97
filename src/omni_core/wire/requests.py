"""Requests that cannot be sent to another process fail alone, and not with those that they were to be sent with."""

from __future__ import annotations

import dataclasses

from omni_core import serialization
from omni_core.errors import RequestError, RPCError
from omni_core.outputs import OmniRequestOutput, SchedulerOutput
from omni_core.request import OmniDiffusionRequest


def without_unpicklable(scheduler_output: SchedulerOutput) -> tuple[SchedulerOutput, list[OmniRequestOutput]]:
    """Return what can be sent of a step, and the outputs of the requests that cannot."""
    sendable, refused = [], []
    for request in scheduler_output.new_requests:
        try:
            serialization.dumps(request)
        except RPCError as error:
            refused.append(cannot_be_sent(request, error))
        else:
            sendable.append(request)
    return dataclasses.replace(scheduler_output, new_requests=sendable), refused


def cannot_be_sent(request: OmniDiffusionRequest, error: RPCError) -> OmniRequestOutput:
    """Return the output of a request that cannot be pickled, for which `error` says why."""
    reason = RequestError(
        f"Request {request.request_id!r} cannot be sent to a worker process: {error}. Use arguments that "
        "can be pickled, or executor_class='inline'."
    )
    return OmniRequestOutput.failed(request, reason)
