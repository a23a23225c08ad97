"""Steps of an executor that runs whole requests: what `execute_model` returned, checked, as the output of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omni_core.errors import ContractError
from omni_core.outputs import OmniRequestOutput, StepOutput
from omni_core.request import OmniDiffusionRequest
from omni_core.validation import described


def run_whole_requests(
    execute_model: Callable[[list[OmniDiffusionRequest]], Any], requests: list[OmniDiffusionRequest], name: str
) -> StepOutput:
    """Run requests to their end.

    Args:
        execute_model: The executor's.
        requests: What to run.
        name: Of the executor.

    Raises:
        ContractError: It did not return one output for each request, in order. One that is no output at all fails its
            request alone, since its place says whose it is.
    """
    outputs: Any = execute_model(list(requests))
    wanted = [request.request_id for request in requests]
    if not isinstance(outputs, (list, tuple)):
        raise ContractError(
            f"{name}.execute_model returned {described(outputs)}: it must return a list with one "
            f"OmniRequestOutput per request, in order."
        )
    got = [output.request_id if isinstance(output, OmniRequestOutput) else None for output in outputs]
    if len(got) != len(wanted) or any(one not in (None, asked) for one, asked in zip(got, wanted, strict=True)):
        raise ContractError(
            f"{name}.execute_model broke its contract: it must return one output per request, in order. "
            f"Asked for {wanted}, got {got}."
        )
    finished = [
        output if isinstance(output, OmniRequestOutput) else _no_output(request, output, name)
        for request, output in zip(requests, outputs, strict=True)
    ]
    return StepOutput(started=wanted, finished=finished)


def _no_output(request: OmniDiffusionRequest, returned: Any, name: str) -> OmniRequestOutput:
    error = ContractError(
        f"{name}.execute_model returned {described(returned)} for request {request.request_id!r}: it must "
        "return an OmniRequestOutput for each."
    )
    return OmniRequestOutput.failed(request, error)
