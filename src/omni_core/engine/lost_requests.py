"""What becomes of the requests of a step that failed."""

from __future__ import annotations

from omni_core.engine.bookkeeping import Live
from omni_core.error_text import described_error
from omni_core.errors import ExecutorError, OmniError, WorkerDiedError
from omni_core.request import OmniDiffusionRequest
from omni_core.scheduler_state import LostRequest


def reason_to_give_up(lost: LostRequest, live: Live, most: int, error: WorkerDiedError) -> WorkerDiedError | None:
    """Return why a request is not run again: workers have died under it too often. None: it may be.

    Args:
        lost: The request.
        live: What is kept of it.
        most: How often it may be run again (`max_retries`).
        error: How the worker died this time.
    """
    # A death in company may be the fault of another: only one that is its own can be the last.
    is_own = lost.blame == "alone" or (most == 0 and lost.blame != "none")
    if not lost.was_started or live.num_deaths < most or not is_own:
        return None
    return WorkerDiedError(
        f"Request {lost.request.request_id!r} was given up: the worker died under it "
        f"{live.num_deaths + 1} times (max_retries = {most}). The last time: {error.message}",
        replica=error.replica,
        rank=error.rank,
        worker_traceback=error.worker_traceback,
    )


def step_error(request: OmniDiffusionRequest, method: str, error: BaseException) -> OmniError:
    """Return with what a request fails whose step raised.

    Args:
        request: The request.
        method: What was called, such as `InlineExecutor.execute_step`.
        error: What it raised.
    """
    if isinstance(error, OmniError):
        return error
    reason = ExecutorError(f"Request {request.request_id!r}: {method} raised {described_error(error)}")
    reason.__cause__ = error
    return reason
