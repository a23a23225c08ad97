"""Makes the spans of a request, once it has ended: none of it is done while it runs."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from omni_core import OmniDiffusionRequest
from omni_core.outputs import OmniRequestOutput
from omni_metrics.options import MetricsOptions
from omni_metrics.tracing.attributes import OPERATION, request_attributes
from omni_metrics.tracing.record import RequestRecord
from omni_metrics.tracing.times import LOST, Stage, begun_ns, stages

_PROPAGATOR = TraceContextTextMapPropagator()


class RequestSpans:
    """Makes spans of the requests of one engine.

    Args:
        tracer: Where they go.
        model: What clients call the model.
        options: What users have set.
    """

    def __init__(self, tracer: Tracer, model: str, options: MetricsOptions) -> None:
        self._tracer = tracer
        self._model = model
        self._options = options

    def make(
        self, request: OmniDiffusionRequest, output: OmniRequestOutput, record: RequestRecord | None, ended_ns: int
    ) -> None:
        """Make the spans of a request that has ended.

        Args:
            request: The request; its metadata may have the trace of the caller.
            output: Its end.
            record: What was noted while it ran; None if no worker began with it.
            ended_ns: When it ended, as a Unix time in nanoseconds.
        """
        context = _PROPAGATOR.extract(request.metadata)
        has_caller = get_current_span(context).get_span_context().is_valid
        span = self._tracer.start_span(
            f"{OPERATION} {self._model}",
            context,
            SpanKind.SERVER if has_caller else SpanKind.INTERNAL,
            start_time=begun_ns(output, ended_ns),
        )
        if span.is_recording():  # else it was not sampled
            span.set_attributes(request_attributes(request, output, self._model, prompts=self._options.prompts))
            _add_events(span, output, record, ended_ns)
            inside = set_span_in_context(span)
            for stage in stages(output, record, ended_ns):
                self._make_stage(stage, inside, record)
        span.end(ended_ns)

    def _make_stage(self, stage: Stage, context: Context, record: RequestRecord | None) -> None:
        span = self._tracer.start_span(stage.name, context, start_time=stage.begun_ns)
        if stage.replica is not None:
            span.set_attribute("omni.replica", stage.replica)
        if stage.name == LOST:
            span.set_status(Status(StatusCode.ERROR, stage.reason))
        if stage.name == "denoise" and record is not None and record.forwards:
            self._make_forwards(stage, set_span_in_context(span), record)
        span.end(stage.ended_ns)

    def _make_forwards(self, stage: Stage, context: Context, record: RequestRecord) -> None:
        for forward in record.forwards:
            if forward.ended_ns < stage.begun_ns:
                continue  # of a run that was lost
            span = self._tracer.start_span("forward", context, start_time=forward.begun_ns)
            span.set_attributes(
                {
                    "omni.replica": forward.replica,
                    "omni.rows": forward.rows,
                    "omni.requests": forward.num_requests,
                }
            )
            span.end(forward.ended_ns)


def _add_events(span: Span, output: OmniRequestOutput, record: RequestRecord | None, ended_ns: int) -> None:
    for lost in () if record is None else record.lost:
        span.add_event(
            "retry",
            {"omni.replica": lost.replica, "omni.reason": lost.reason, "omni.retry": lost.number},
            lost.ended_ns,
        )
    error = output.error
    if output.finish_reason == "finished" or error is None:
        return
    if output.finish_reason == "aborted":  # the caller's wish, and no error
        span.add_event("abort", {"omni.reason": error.message}, ended_ns)
        return
    about = {"exception.type": type(error).__name__, "exception.message": error.message}
    if error.worker_traceback is not None:
        about["exception.stacktrace"] = error.worker_traceback
    span.add_event("exception", about, ended_ns)
    span.set_status(Status(StatusCode.ERROR, error.message))
