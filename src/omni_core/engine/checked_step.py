"""Checks the `StepOutput` that an executor returns. Called for every step, so nothing is copied unless it is wrong."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any

from omni_core.errors import ContractError, OmniError
from omni_core.outputs import (
    ForwardReport,
    OmniRequestOutput,
    RequestMetrics,
    StackingStats,
    StepOutput,
    StepProgress,
)
from omni_core.request import OmniDiffusionRequest
from omni_core.validation import described

_FINISH_REASONS = ("finished", "aborted", "error", "timeout")
_LISTS = ("started", "progress", "finished", "forwards", "start_seconds")


@dataclass(slots=True)
class CheckedStep:
    """The result of a step after the check.

    Attributes:
        output: The `StepOutput` without invalid progress. A request whose output is malformed has failed in it.
        malformed: By request id, the error of each request that the step reported wrongly and that has not ended.
    """

    output: StepOutput
    malformed: dict[str, ContractError] = field(default_factory=dict)


def check_step_output(
    step_output: Any,
    method: str,
    replica: int,
    placed: dict[str, OmniDiffusionRequest],
    strays: Container[str] = (),
) -> CheckedStep:
    """Check the result of a step. An error that concerns one request fails that request only.

    Args:
        step_output: What the executor returned.
        method: The method of the executor that returned it, for messages.
        replica: Index of the replica.
        placed: The requests that run on the replica, by id.
        strays: Ids of requests that the engine has taken away from the replica, which it may still report.

    Raises:
        ContractError: The result is malformed in a way that concerns all requests of the replica.
    """
    return _Check(method, replica, placed, strays).run(step_output)


class _Check:
    def __init__(
        self, method: str, replica: int, placed: dict[str, OmniDiffusionRequest], strays: Container[str]
    ) -> None:
        self._method = method
        self._replica = replica
        self._placed = placed
        self._strays = strays

    def run(self, step_output: Any) -> CheckedStep:
        if not isinstance(step_output, StepOutput):
            raise self._broken(f"its future holds {described(step_output)}, and must hold a StepOutput")
        for name in _LISTS:
            value = getattr(step_output, name)
            if not isinstance(value, (list, tuple)):
                raise self._broken(f"StepOutput.{name} is {described(value)}, and must be a list")
        for request_id in step_output.started:
            self._check_id(request_id, "started")
        self._check_costs(step_output)
        step = CheckedStep(step_output)
        for progress in step_output.progress:
            self._check_progress(progress, step.malformed)
        if step.malformed:
            sound = [one for one in step_output.progress if one.request_id not in step.malformed]
            step.output = dataclasses.replace(step_output, progress=sound)
        if step_output.finished:
            self._check_finished(step_output.finished, step)
        return step

    def _check_finished(self, finished: Iterable[Any], step: CheckedStep) -> None:
        checked: dict[str, OmniRequestOutput] = {}
        is_changed = False
        for output in finished:
            if not isinstance(output, OmniRequestOutput):
                raise self._broken(f"StepOutput.finished holds {described(output)}, and must hold OmniRequestOutputs")
            request_id = output.request_id
            self._check_id(request_id, "finished")
            request = self._placed.get(request_id)
            if request is not None:
                error = step.malformed.pop(request_id, None)
                problem = "there are two outputs for it" if request_id in checked else _problem(output, request)
                if error is None and problem is not None:
                    error = self._of_request(request_id, problem)
                if error is not None:
                    output = OmniRequestOutput.failed(request, error)  # noqa: PLW2901
                    is_changed = True
            checked[request_id] = output
        if is_changed:
            step.output = dataclasses.replace(step.output, finished=list(checked.values()))

    def _check_progress(self, progress: Any, malformed: dict[str, ContractError]) -> None:
        if not isinstance(progress, StepProgress):
            raise self._broken(f"StepOutput.progress holds {described(progress)}, and must hold StepProgresses")
        self._check_id(progress.request_id, "progress")
        for name in ("step", "num_steps"):
            number = getattr(progress, name)
            if type(number) is not int or number < 0:
                malformed[progress.request_id] = self._of_request(
                    progress.request_id,
                    f"StepProgress.{name} is {described(number)}, and must be a whole number from 0",
                )

    def _check_costs(self, step_output: StepOutput) -> None:
        for forward in step_output.forwards:
            if not isinstance(forward, ForwardReport):
                raise self._broken(f"StepOutput.forwards holds {described(forward)}, and must hold ForwardReports")
            if not isinstance(forward.request_ids, (tuple, list)) or not forward.request_ids:
                raise self._broken("ForwardReport.request_ids must be a tuple with an id at least")
            for request_id in forward.request_ids:
                if not isinstance(request_id, str):
                    raise self._broken(f"ForwardReport.request_ids holds {described(request_id)}, and must hold ids")
            self._check_seconds(forward.seconds, "ForwardReport.seconds")
        for seconds in step_output.start_seconds:
            self._check_seconds(seconds, "StepOutput.start_seconds")
        if not isinstance(step_output.kinds, dict):
            raise self._broken(f"StepOutput.kinds is {described(step_output.kinds)}, and must be a dict")
        if not isinstance(step_output.suspects, dict):
            raise self._broken(f"StepOutput.suspects is {described(step_output.suspects)}, and must be a dict")
        if not isinstance(step_output.stacking, (StackingStats, type(None))):
            raise self._broken(f"StepOutput.stacking is {described(step_output.stacking)}, and must be a StackingStats")
        for kind in step_output.kinds.values():
            if not isinstance(kind, int):
                raise self._broken(f"StepOutput.kinds holds {described(kind)}, and must hold whole numbers")

    def _check_seconds(self, seconds: Any, name: str) -> None:
        if not isinstance(seconds, (float, int)) or not 0 <= seconds <= sys.float_info.max:
            raise self._broken(f"{name} holds {described(seconds)}, and must hold seconds from 0")

    def _check_id(self, request_id: Any, name: str) -> None:
        if not isinstance(request_id, str) or (request_id not in self._placed and request_id not in self._strays):
            has = ", ".join(self._placed) or "none"
            what = repr(request_id) if isinstance(request_id, str) else described(request_id)
            raise self._broken(f"StepOutput.{name} tells of request {what}, and replica {self._replica} has: {has}")

    def _broken(self, problem: str) -> ContractError:
        return ContractError(
            f"{self._method} broke its contract, so that replica {self._replica} lost its requests: {problem}."
        )

    def _of_request(self, request_id: str, problem: str) -> ContractError:
        return ContractError(f"Request {request_id!r}: {self._method} broke its contract: {problem}.")


def _problem(output: Any, request: OmniDiffusionRequest) -> str | None:
    """Return what is wrong with the output of a request, or None."""
    reason, error = output.finish_reason, output.error
    if reason not in _FINISH_REASONS:
        return f"finish_reason is {described(reason)}, and must be one of {', '.join(_FINISH_REASONS)}"
    if (error is None) != (reason == "finished"):
        return (
            f"finish_reason is {reason!r} and error is {described(error)}: an OmniError belongs to all but 'finished'"
        )
    if error is not None and not isinstance(error, OmniError):
        return f"error is {described(error)}, and must be an OmniError"
    # A request that says nothing may be given another seed, as where the ranks of a program must agree on one.
    if output.seed != request.seed and ("seed" in request.model_fields_set or type(output.seed) is not int):
        return f"seed is {described(output.seed)}, and the request has {request.seed}"
    if not isinstance(output.output, dict):
        return f"output is {described(output.output)}, and must be a dict"
    metrics = output.metrics
    if not isinstance(metrics, RequestMetrics):
        return f"metrics is {described(metrics)}, and must be a RequestMetrics"
    for seconds in (metrics.encode_s, metrics.denoise_s, metrics.decode_s):
        if not isinstance(seconds, (float, int)) or not 0 <= seconds <= sys.float_info.max:
            return f"metrics hold {described(seconds)}, and must hold seconds from 0"
    return None
