"""Every hook of version 1, each with all of its arguments."""

import click

from omni_core import ExecutorSpec, hookimpl

# What was called, with what, in order.
calls = []


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
def omni_configure(config):
    calls.append(("omni_configure", config.executor_class))


@hookimpl
def omni_pipeline_loaded(pipeline, worker):
    calls.append(("omni_pipeline_loaded", type(pipeline).__name__, type(worker).__name__))


@hookimpl
def omni_engine_started(config, executor):
    calls.append(("omni_engine_started", config.executor_class, type(executor).__name__))


@hookimpl
def omni_engine_closed(config):
    calls.append(("omni_engine_closed", config.executor_class))


@hookimpl
def omni_request_queued(request):
    calls.append(("omni_request_queued", request.request_id))


@hookimpl
def omni_request_started(request_id, replica):
    calls.append(("omni_request_started", request_id, replica))


@hookimpl
def omni_request_step(request_id, step, num_steps):
    calls.append(("omni_request_step", request_id, step, num_steps))


@hookimpl
def omni_request_finished(output):
    calls.append(("omni_request_finished", output.request_id, output.finish_reason))


@hookimpl
def omni_request_failed(request_id, error):
    calls.append(("omni_request_failed", request_id, type(error).__name__))


@hookimpl
def omni_worker_died(replica, rank, reason):
    calls.append(("omni_worker_died", replica, rank, reason))


@hookimpl
def omni_worker_restarted(replica, rank):
    calls.append(("omni_worker_restarted", replica, rank))


@hookimpl
def omni_cli(app):
    @app.command("contract-one", help="Say what contract-one is.")
    def contract_one():
        click.echo("contract-one draws plain squares")
