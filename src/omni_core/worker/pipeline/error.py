"""The error of a request whose pipeline raised."""

from __future__ import annotations

import contextlib
import traceback

import torch

from omni_core.error_text import described_error
from omni_core.errors import OmniError, PipelineError
from omni_core.request import OmniDiffusionRequest
from omni_core.worker.pipeline.prompt import HookError


def pipeline_error(request: OmniDiffusionRequest, error: BaseException) -> OmniError:
    """Return the error that the caller gets for what a pipeline raised, with its traceback as text."""
    text = "".join(traceback.format_exception(error))
    _let_go_of_frames(error)
    if isinstance(error, HookError):
        error.error.worker_traceback = text
        return error.error
    hint = ""
    if isinstance(error, torch.OutOfMemoryError):
        hint = " Ask for a smaller picture or fewer outputs, lower max_num_seqs, or set offload."
    return PipelineError(
        f"Request {request.request_id!r}: the pipeline raised {described_error(error).rstrip('.')}.{hint}",
        worker_traceback=text,
    )


def _let_go_of_frames(error: BaseException) -> None:
    """The frames hold the latents and the pipeline copy; where it was stands in the text."""
    seen: dict[int, BaseException] = {}  # an exception may be its own cause
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen[id(one)] = one
        with contextlib.suppress(Exception):
            one.__traceback__ = None
        left += [one.__cause__, one.__context__]
        left += [part for part in getattr(one, "exceptions", ()) if isinstance(part, BaseException)]
