"""Families of requests: how many came, how they ended, and where their time went."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from omni_core.errors import OmniError
from omni_core.outputs import OmniRequestOutput
from omni_metrics.outputs import KINDS, made_by
from omni_metrics.prometheus.buckets import PIXELS, REQUEST_SECONDS, STEPS
from omni_metrics.prometheus.errors import error_label

_REASONS = ("finished", "aborted", "error", "timeout")
# The usual errors, whose counts are 0 and not missing before the first: else the rate of the first would be lost.
_USUAL_FAILURES = ("PipelineError", "WorkerDiedError", "RequestTimeoutError", "ExecutorError", "EngineClosedError")
_USUAL_REFUSALS = ("RequestError", "EngineOverloadedError")


class RequestFamilies:
    """Counts requests. Every method may be called from any thread.

    Args:
        registry: Where the families are.
        num_replicas: How many replicas may lose a request.
    """

    def __init__(self, registry: CollectorRegistry, num_replicas: int) -> None:
        self._accepted = Counter("omni_requests_accepted", "Requests that were accepted.", registry=registry)
        ended = Counter("omni_requests", "Requests that have ended, by how.", ["reason"], registry=registry)
        duration = Histogram(
            "omni_request_duration_seconds",
            "From the submission of a request to its end, by how it ended.",
            ["reason"],
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        # Bound once: a count of nothing is 0 and not missing, and an event costs one look-up.
        self._ended = {reason: (ended.labels(reason), duration.labels(reason)) for reason in _REASONS}
        self._failures = Counter(
            "omni_request_failures",
            "Requests that ended with an error or ran out of their time, by the class of the error.",
            ["error"],
            registry=registry,
        )
        self._refused = Counter(
            "omni_requests_refused",
            "Requests that were not accepted, by the class of the error.",
            ["error"],
            registry=registry,
        )
        for error in _USUAL_FAILURES:
            self._failures.labels(error)
        for error in _USUAL_REFUSALS:
            self._refused.labels(error)
        retries = Counter(
            "omni_request_retries",
            "Times that a request was run again since a worker of that replica died.",
            ["replica"],
            registry=registry,
        )
        self._retries = [retries.labels(str(index)) for index in range(num_replicas)]
        self._queue = self._seconds("queue", "From submission until a worker began for the last time", registry)
        self._stages = {
            name: self._seconds(name, what, registry)
            for name, what in (
                ("encode", "From the beginning of the work to the first denoiser call, of requests that finished"),
                ("denoise", "From the first denoiser call to the end of the last, of requests that finished"),
                ("decode", "From the last denoiser call to the output, of requests that finished"),
            )
        }
        self._steps = Histogram(
            "omni_request_steps",
            "Denoising steps of a request that finished.",
            buckets=STEPS,
            registry=registry,
        )
        self._steps_done = Counter(
            "omni_denoising_steps", "Denoising steps of requests that have ended.", registry=registry
        )
        outputs = Counter("omni_outputs", "Outputs that were made, by kind.", ["kind"], registry=registry)
        self._outputs = {kind: outputs.labels(kind) for kind in KINDS}
        self._pixels = Histogram(
            "omni_output_pixels",
            "Pixels of a picture, or of a frame of a video.",
            buckets=PIXELS,
            registry=registry,
        )
        self._suspect = Counter(
            "omni_outputs_suspect", "Outputs that may be wrong: see stacking in OPERATIONS.md.", registry=registry
        )

    @staticmethod
    def _seconds(name: str, what: str, registry: CollectorRegistry) -> Histogram:
        return Histogram(f"omni_request_{name}_seconds", f"{what}.", buckets=REQUEST_SECONDS, registry=registry)

    def accepted(self) -> None:
        """A request was accepted."""
        self._accepted.inc()

    def refused(self, error: OmniError) -> None:
        """A request was not."""
        self._refused.labels(error_label(error)).inc()

    def retried(self, replica: int) -> None:
        """A request is run again, since a worker of a replica died."""
        self._retries[replica].inc()

    def ended(self, output: OmniRequestOutput) -> None:
        """A request has ended, in whatever way."""
        metrics = output.metrics
        count, duration = self._ended[output.finish_reason]
        count.inc()
        duration.observe(metrics.total_s)
        self._queue.observe(metrics.queue_s)
        self._steps_done.inc(metrics.num_steps)
        if output.finish_reason == "finished":
            self._finished(output)
        elif output.finish_reason != "aborted":
            self._failures.labels(error_label(output.error)).inc()

    def suspect(self) -> None:
        """An output that was given out may be wrong."""
        self._suspect.inc()

    def _finished(self, output: OmniRequestOutput) -> None:
        metrics = output.metrics
        self._stages["encode"].observe(metrics.encode_s)
        self._stages["denoise"].observe(metrics.denoise_s)
        self._stages["decode"].observe(metrics.decode_s)
        self._steps.observe(metrics.num_steps)
        if metrics.suspect:
            self._suspect.inc()
        made = made_by(output)
        self._outputs[made.kind].inc(made.number)
        if made.pixels:
            for _ in range(made.number):
                self._pixels.observe(made.pixels)
