"""Every hook of version 1, each with all of its arguments."""

from dataclasses import replace

import click

from omni_core import ExecutorSpec, hookimpl
from omni_core.errors import RequestError

# The hooks that were called, with what, in order; and what else was.
calls = []
noted = []


@hookimpl
def omni_register_executors():
    calls.append(("omni_register_executors",))
    return [
        ExecutorSpec(
            name="contract-one",
            target="contract_one.executor:OneExecutor",
            summary="Draws plain squares.",
            options="contract_one.options:OneOptions",
            api=1,
        )
    ]


@hookimpl
def omni_configure(config, engine_id):
    calls.append(("omni_configure", config.executor_class, engine_id))


@hookimpl
def omni_pipeline_loaded(pipeline, worker):
    calls.append(("omni_pipeline_loaded", type(pipeline).__name__, type(worker).__name__))


@hookimpl
def omni_encode_prompt(pipeline, request):
    calls.append(("omni_encode_prompt", type(pipeline).__name__, request.request_id))


@hookimpl
def omni_output(request, output, engine_id):
    calls.append(("omni_output", request.request_id, output.request_id, engine_id))
    if request.prompt == "forbidden":
        raise RequestError("That is not drawn here.")
    if request.metadata.get("frame") == "none":
        return replace(output, output={"images": []})
    return None


@hookimpl
def omni_engine_started(config, executor, engine, engine_id):
    same = engine.engine_id == engine_id
    calls.append(("omni_engine_started", config.executor_class, type(executor).__name__, same, engine_id))
    noted.append(("stats", engine.stats(ask_workers=False).running))


@hookimpl
def omni_engine_closed(config, engine_id):
    calls.append(("omni_engine_closed", config.executor_class, engine_id))


@hookimpl
def omni_engine_asleep(level, engine_id):
    calls.append(("omni_engine_asleep", level, engine_id))


@hookimpl
def omni_engine_awake(engine_id):
    calls.append(("omni_engine_awake", engine_id))


@hookimpl
def omni_request_queued(request, engine_id):
    calls.append(("omni_request_queued", request.request_id, engine_id))


@hookimpl
def omni_request_refused(request, error, engine_id):
    calls.append(("omni_request_refused", request.request_id, type(error).__name__, engine_id))


@hookimpl
def omni_request_started(request_id, request, replica, engine_id):
    calls.append(("omni_request_started", request_id, request.request_id, replica, engine_id))


@hookimpl
def omni_request_step(request_id, step, num_steps, engine_id):
    calls.append(("omni_request_step", request_id, step, num_steps, engine_id))


@hookimpl
def omni_request_retried(request_id, request, replica, reason, num_retries, engine_id):
    calls.append(("omni_request_retried", request_id, request.prompt, replica, reason, num_retries, engine_id))


@hookimpl
def omni_request_finished(request, output, engine_id):
    calls.append(("omni_request_finished", request.request_id, output.finish_reason, engine_id))


@hookimpl
def omni_request_failed(request_id, request, output, error, engine_id):
    same = output.error is error and request.request_id == request_id
    calls.append(("omni_request_failed", request_id, type(error).__name__, same, engine_id))


@hookimpl
def omni_output_suspect(request_id, reason, engine_id):
    calls.append(("omni_output_suspect", request_id, reason, engine_id))


@hookimpl
def omni_step_done(replica, seconds, forwards, engine_id):
    calls.append(("omni_step_done", replica, seconds > 0, len(forwards) > 0, engine_id))


@hookimpl
def omni_worker_started(replica, rank, pid, engine_id):
    calls.append(("omni_worker_started", replica, rank, pid, engine_id))


@hookimpl
def omni_worker_died(replica, rank, reason, engine_id):
    calls.append(("omni_worker_died", replica, rank, reason, engine_id))


@hookimpl
def omni_worker_restarted(replica, rank, engine_id):
    calls.append(("omni_worker_restarted", replica, rank, engine_id))


@hookimpl
def omni_replica_state(replica, state, reason, engine_id):
    calls.append(("omni_replica_state", replica, state, reason, engine_id))


@hookimpl
def omni_cli(app):
    @app.command("contract-one", help="Say what contract-one is.")
    def contract_one():
        click.echo("contract-one draws plain squares")
