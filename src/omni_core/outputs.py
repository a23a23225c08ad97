"""What comes back: outputs for the user, and step outputs for the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from omni_core.errors import OmniError, RequestAbortedError, RequestTimeoutError
from omni_core.request import OmniDiffusionRequest

EndReason = Literal["aborted", "timeout"]
FinishReason = Literal["finished", "aborted", "error", "timeout"]


@dataclass(slots=True)
class RequestMetrics:
    """Where the time of one request went.

    Attributes:
        queue_s: Seconds from submission until a worker began.
        encode_s: Seconds from there to the first denoiser call (prompt encoding, preparation).
        denoise_s: Seconds from the first denoiser call to the end of the last.
        decode_s: Seconds from there to the end (decoding, post-processing).
        output_s: Seconds that plugins took with the output before it was given out (the hook `omni_output`).
        num_steps: Denoising steps done.
        num_calls: Denoiser calls made; two in each step of a pipeline that guides with a call of its own.
        mean_rows: Mean number of rows of the forward passes that served them.
        num_retries: Times the request was run again because a worker died.
        suspect: Why the output may be wrong: a kind of call that has served it in company was found not to stack since.
            Empty as a rule.
    """

    queue_s: float = 0.0
    encode_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    output_s: float = 0.0
    num_steps: int = 0
    num_calls: int = 0
    mean_rows: float = 0.0
    num_retries: int = 0
    suspect: str = ""

    @property
    def total_s(self) -> float:
        """Seconds from submission to the end."""
        return self.queue_s + self.encode_s + self.denoise_s + self.decode_s + self.output_s


@dataclass(slots=True)
class OmniRequestOutput:
    """The end of one request, whatever way it ended.

    Attributes:
        request_id: Which request this answers.
        seed: The seed it was run with: the same seed and arguments give the same output again.
        finish_reason: `"finished"`, `"aborted"`, `"error"` or `"timeout"`.
        output: Every field of the pipeline's own output by its name (`images`, `frames`, `audios`, …), in the form
            that `output_type` asked for. Empty unless finished.
        error: Why there is no output. None if finished.
        metrics: Where the time went.
    """

    request_id: str
    seed: int
    finish_reason: FinishReason
    output: dict[str, Any] = field(default_factory=dict)
    error: OmniError | None = None
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    @property
    def images(self) -> list[Any]:
        """The pictures, one entry each: `PIL.Image.Image`, or an array `[H, W, C]`, or a tensor `[C, H, W]`.

        Empty if the pipeline makes no pictures or the request did not finish.
        """
        images = self.output.get("images")
        return [] if images is None else list(images)

    @classmethod
    def ended(
        cls, request: OmniDiffusionRequest, reason: EndReason, metrics: RequestMetrics | None = None
    ) -> OmniRequestOutput:
        """Return the output of a request that was given up before it finished."""
        metrics = metrics or RequestMetrics()
        where = f"Request {request.request_id!r}"
        after = f"after {metrics.num_steps} denoising steps"
        error: OmniError
        if reason == "aborted":
            error = RequestAbortedError(f"{where} was aborted {after}.")
        else:
            error = RequestTimeoutError(
                f"{where} did not finish within its timeout_s = {request.timeout_s} and was ended {after}."
            )
        return cls(request.request_id, request.seed, reason, error=error, metrics=metrics)

    @classmethod
    def failed(
        cls, request: OmniDiffusionRequest, error: OmniError, metrics: RequestMetrics | None = None
    ) -> OmniRequestOutput:
        """Return the output of a request that ended with an error."""
        return cls(request.request_id, request.seed, "error", error=error, metrics=metrics or RequestMetrics())

    def raise_for_error(self) -> OmniRequestOutput:
        """Raise `error` if there is one, else return this output, so that calls can be chained."""
        if self.error is not None:
            raise self.error
        return self


@dataclass(slots=True)
class StepProgress:
    """How far one request is: `step` denoising steps done of `num_steps` (0 while not known).

    `preview` is a small picture of the state so far, where one was asked for.
    """

    request_id: str
    step: int
    num_steps: int
    preview: Any = None


@dataclass(frozen=True, slots=True)
class ForwardReport:
    """One group of denoiser calls that were run together.

    Attributes:
        request_ids: Whose calls they were.
        rows: Rows of all of them.
        seconds: How long it took.
    """

    request_ids: tuple[str, ...]
    rows: int
    seconds: float


@dataclass(slots=True)
class StepOutput:
    """What one `execute_step` of one replica did.

    Attributes:
        started: Ids of the requests that a worker began to work on.
        progress: Newest progress of each request that moved on.
        finished: Outputs of the requests that ended in it, failures and aborts among them.
        forwards: What was run, in order.
        start_seconds: Seconds that each request that was started took to its first denoiser call.
        kinds: For each request that waits for a denoiser call, a number: calls of equal number run together.
        suspects: For requests that ended before, why their outputs may be wrong, as `RequestMetrics.suspect`.
        stacking: What stacking did so far, if it has verified, refused or checked a kind since the last call, else
            None.
    """

    started: list[str] = field(default_factory=list)
    progress: list[StepProgress] = field(default_factory=list)
    finished: list[OmniRequestOutput] = field(default_factory=list)
    forwards: list[ForwardReport] = field(default_factory=list)
    start_seconds: list[float] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    suspects: dict[str, str] = field(default_factory=dict)
    stacking: StackingStats | None = None


@dataclass(slots=True)
class SchedulerOutput:
    """What one replica shall do next; the argument of `execute_step`.

    Attributes:
        new_requests: Requests to take up beside those already running there.
        ended_requests: Running requests to give up, and why. Each must come back in `StepOutput.finished`.
        waves: What to run before reporting back: in each wave, each of the named requests advances by one denoiser
            call (a request that was not started is started first). Requests that no wave names are parked. A request
            that ends is to be told at once: a worker leaves out the waves that are left then.
    """

    new_requests: list[OmniDiffusionRequest] = field(default_factory=list)
    ended_requests: dict[str, EndReason] = field(default_factory=dict)
    waves: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(slots=True)
class StackingStats:
    """What stacking did so far, in one worker.

    Attributes:
        calls: Denoiser calls that requests made.
        forwards: Forward passes that served them.
        rows: Rows in all those passes.
        verified: Kinds of calls that were found right to stack.
        refused: For each kind that runs alone, what it is and why.
        checks: Times that a kind which was found right was looked at again, by a sample or as a whole.
        mismatches: For each kind that was found wrong then, what it is and how: requests that it has served may have
            wrong outputs.
    """

    calls: int = 0
    forwards: int = 0
    rows: int = 0
    verified: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    checks: int = 0
    mismatches: dict[str, str] = field(default_factory=dict)

    @property
    def mean_rows(self) -> float:
        """Mean rows of a forward pass."""
        return self.rows / self.forwards if self.forwards else 0.0

    def __add__(self, other: StackingStats) -> StackingStats:
        return StackingStats(
            self.calls + other.calls,
            self.forwards + other.forwards,
            self.rows + other.rows,
            self.verified + other.verified,
            {**self.refused, **other.refused},
            self.checks + other.checks,
            {**self.mismatches, **other.mismatches},
        )


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker process, as seen from outside.

    Attributes:
        replica: Index of its replica.
        rank: Its rank within the replica.
        pid: Its process id; None while there is no process.
        state: `"starting"`, `"idle"`, `"busy"`, `"restarting"` (waits for its turn to be started again) or `"failed"`.
        uptime_s: Seconds since the process was ready; 0 before.
        restarts: Times that it was replaced.
        memory_bytes: Resident memory of the process; 0 where it cannot be told.
        last_heartbeat_s: Seconds since it was last heard of; None before it was.
    """

    replica: int
    rank: int
    pid: int | None
    state: Literal["starting", "idle", "busy", "restarting", "failed"]
    uptime_s: float = 0.0
    restarts: int = 0
    memory_bytes: int = 0
    last_heartbeat_s: float | None = None


@dataclass(frozen=True, slots=True)
class RequestEstimate:
    """When a request will be done, as far as can be told; what `DiffusionEngine.estimate` returns.

    It is reckoned from how long the steps of requests of the same kind took (of the same size, number of outputs and
    frames, with or without guidance) on replicas that worked on as many requests, from how long such requests took
    before and after their steps, and from the requests that run and that wait with the same or a higher priority. Kinds
    that have not run yet are scaled from those that have. What will arrive, be aborted or fail is not foreseen, and
    nothing but measurements is known of the device: a guess, not a promise.

    Attributes:
        seconds: Seconds from now until it is done.
        queue_s: Seconds of those until it begins; 0 if it has begun, or would at once.
        position: How many requests are ahead of it in the backlog; 0 if it has begun, or would at once.
    """

    seconds: float
    queue_s: float
    position: int


@dataclass(slots=True)
class EngineStats:
    """What an engine does and did.

    Attributes:
        waiting: Requests that no replica has taken up.
        running: Requests that a replica works on, or whose output a plugin looks at before it is returned.
        parked: Requests that gave their place to one of higher priority.
        ended: Requests that have ended, by `finish_reason`.
        stacking: What stacking did, in all replicas; None if the executor cannot tell.
        workers: The worker processes, where there are any.
    """

    waiting: int = 0
    running: int = 0
    parked: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    stacking: StackingStats | None = None
    workers: list[WorkerStats] = field(default_factory=list)
