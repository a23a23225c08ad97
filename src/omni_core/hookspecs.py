"""The plugin contract: what a plugin may implement, and the executor it may register.

A plugin is a light module named by an entry point of the group `omni_core`. It marks its functions with
`omni_core.hookimpl`. A hook takes any subset of the arguments listed here, by name. See docs/PLUGIN_AUTHORS.md.

`engine_id` tells the engines of one process apart: it is `DiffusionEngine.engine_id`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    import click

    from omni_core.config import OmniDiffusionConfig
    from omni_core.errors import OmniError
    from omni_core.outputs import ForwardReport, OmniRequestOutput, StackingStats
    from omni_core.request import OmniDiffusionRequest

PROJECT_NAME = "omni_core"
ENTRY_POINT_GROUP = "omni_core"
# Versions of the executor contract (`DiffusionExecutor` and `ExecutorSpec`) that this core speaks: the newest, and the
# oldest whose executors still run unchanged.
API_VERSION = 1
OLDEST_API_VERSION = 1

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@dataclass(frozen=True, slots=True)
class ExecutorSpec:
    """An executor that a plugin offers. The strings are imported only when the executor is selected.

    Attributes:
        name: What users write in `executor_class`.
        target: Import path `pkg.mod:Class` of the `DiffusionExecutor` subclass.
        summary: One line for `omni plugins`.
        options: Import path of a pydantic model for `executor_options`. None: the executor takes no options.
        api: Version of the executor contract that the executor was written for. The default never changes: a plugin
            that says nothing was written for version 1.
    """

    name: str
    target: str
    summary: str = ""
    options: str | None = None
    api: int = 1


@hookspec
def omni_register_executors() -> Iterable[ExecutorSpec]:  # type: ignore[empty-body]
    """Name the executors that this plugin offers. Called at discovery: import nothing heavy."""


@hookspec
def omni_configure(config: OmniDiffusionConfig, engine_id: str) -> None:
    """Look at the configuration before anything starts. What is raised here stops the engine from starting."""


@hookspec
def omni_pipeline_loaded(pipeline: Any, worker: Any) -> None:
    """Change a pipeline that was just loaded, in every worker: LoRA weights, compilation, another scheduler.

    What is raised here fails the start of that worker, since pictures would differ without the change.
    """


@hookspec
def omni_encode_prompt(pipeline: Any, request: OmniDiffusionRequest) -> Mapping[str, Any] | None:
    """Turn the prompt of a request into arguments of the pipeline, in every worker, as the request begins there.

    Args:
        pipeline: The request's own copy of the pipeline. Its text encoders are shared with other requests.
        request: The request.

    Returns:
        Arguments that take the place of `prompt` and `negative_prompt`, such as `prompt_embeds`; or None, and then the
        next plugin is asked. All ranks must return the same, and a request must get the same each time it is run.

    What is raised here fails the request.
    """


@hookspec
def omni_output(request: OmniDiffusionRequest, output: OmniRequestOutput, engine_id: str) -> OmniRequestOutput | None:
    """Check or change what a request has made, in the engine's process, before anybody gets it.

    Called for requests that finished, in a thread of the engine's for this hook, one request after the other: other
    requests go on meanwhile. The time that it takes counts towards `timeout_s` of the request.

    Returns:
        What is given out instead; None leaves it as it is. A plugin gets what the one before it has returned.

    What is raised here fails the request: it ends with `finish_reason="error"`.
    """


@hookspec
def omni_engine_started(config: OmniDiffusionConfig, executor: Any, engine: Any, engine_id: str) -> None:
    """Observe that an engine is ready for requests: a `DiffusionEngine`.

    `engine.stats(ask_workers=False)` may be called from any thread, and waits for nothing. Keep a weak reference to the
    engine: it is closed when nobody refers to it any more.
    """


@hookspec
def omni_engine_closed(config: OmniDiffusionConfig, engine_id: str) -> None:
    """Observe that an engine was closed."""


@hookspec
def omni_engine_asleep(level: int, engine_id: str) -> None:
    """Observe that the workers of an engine were put to sleep at a level: requests wait from now on."""


@hookspec
def omni_engine_awake(engine_id: str) -> None:
    """Observe that the workers of an engine were woken up."""


@hookspec
def omni_request_queued(request: OmniDiffusionRequest, engine_id: str) -> None:
    """Observe that a request was accepted."""


@hookspec
def omni_request_refused(request: OmniDiffusionRequest, error: OmniError, engine_id: str) -> None:
    """Observe that a request was not accepted: it does not fit the pipeline or a limit, or too many wait.

    Of requests that were handed over together, those that are refused since another is are told as well. Called in the
    thread of the caller.
    """


@hookspec
def omni_request_started(request_id: str, request: OmniDiffusionRequest, replica: int, engine_id: str) -> None:
    """Observe that a worker of `replica` began to work on a request, for the first time."""


@hookspec
def omni_request_step(request_id: str, step: int, num_steps: int, engine_id: str) -> None:
    """Observe that `step` of `num_steps` denoising steps of a request are done (`num_steps` is 0 while unknown).

    Steps that follow each other quickly are reported as one: the last.
    """


@hookspec
def omni_request_retried(  # noqa: PLR0917  # plugins take arguments by name
    request_id: str, request: OmniDiffusionRequest, replica: int, reason: str, num_retries: int, engine_id: str
) -> None:
    """Observe that a request waits to be run again, for the `num_retries`-th time, since a worker of `replica` died."""


@hookspec
def omni_request_finished(request: OmniDiffusionRequest, output: OmniRequestOutput, engine_id: str) -> None:
    """Observe that a request ended with an output, or because somebody aborted it."""


@hookspec
def omni_request_failed(
    request_id: str, request: OmniDiffusionRequest, output: OmniRequestOutput, error: OmniError, engine_id: str
) -> None:
    """Observe that a request ended with an error or ran out of its time."""


@hookspec
def omni_output_suspect(request_id: str, reason: str, engine_id: str) -> None:
    """Observe that an output which was given out may be wrong: what served it in company was found wrong since.

    One that is found so before it is given out says so itself, in `output.metrics.suspect`.
    """


@hookspec
def omni_step_done(replica: int, seconds: float, forwards: Sequence[ForwardReport], engine_id: str) -> None:
    """Observe that a replica has done a step: one call of the executor, of one or several waves.

    Args:
        replica: Index of the replica.
        seconds: From handing the step over to its answer.
        forwards: The forward passes, in order, each with its rows, its seconds, and whose calls it served. Empty if no
            denoiser was called, or the executor runs whole requests.
        engine_id: The engine's.
    """


@hookspec
def omni_stacking_changed(replica: int, stacking: StackingStats, engine_id: str) -> None:
    """Observe that a replica has verified a kind of denoiser call for stacking, refused one, or looked at one again.

    Args:
        replica: Index of the replica.
        stacking: All that its workers have come to know since they were started.
        engine_id: The engine's.
    """


@hookspec
def omni_worker_started(replica: int, rank: int, pid: int | None, engine_id: str) -> None:
    """Observe that a worker process has loaded the pipeline and is ready, for the first time or in place of another."""


@hookspec
def omni_worker_died(replica: int, rank: int, reason: str, engine_id: str) -> None:
    """Observe that a worker ended without being asked to."""


@hookspec
def omni_worker_restarted(replica: int, rank: int, engine_id: str) -> None:
    """Observe that a worker was replaced and is ready."""


@hookspec
def omni_replica_state(replica: int, state: str, reason: str, engine_id: str) -> None:
    """Observe that a replica of worker processes is in another state.

    Args:
        replica: Index of the replica.
        state: `"starting"`, `"ready"`, `"restarting"` (lost, and to be started again), `"failed"` (keeps dying; the
            next try comes later) or `"closed"`.
        reason: Why it was lost. Empty otherwise.
        engine_id: The engine's.
    """


@hookspec
def omni_metrics(engine_id: str) -> str | None:
    """Return the numbers of an engine for Prometheus, or None; and then the next plugin is asked.

    A server that serves the engine shows them at `/metrics`. Called in a thread in which it may compute; it must not
    wait for workers.

    Args:
        engine_id: The engine's.

    Returns:
        Text in Prometheus' text format, version 0.0.4.
    """


@hookspec
def omni_http_request(route: str, method: str, status: int, seconds: float, engine_id: str) -> None:
    """Observe that a server of the engine has answered an HTTP request. Called in the server's event loop.

    Args:
        route: Which endpoint: its template, such as `/v1/videos/{job_id}`, and never the path itself; `"other"` if
            there is none.
        method: `"GET"` and so on; `"other"` if HTTP has no such method.
        status: Of the answer; 499 if the client went away before one.
        seconds: Until the last byte of the answer was handed over.
        engine_id: The engine's.
    """


@hookspec
def omni_http_disconnect(route: str, engine_id: str) -> None:
    """Observe that a client went away before it had its answer, whose making was then ended.

    Args:
        route: Which endpoint, as in `omni_http_request`, which is told as well.
        engine_id: The engine's.
    """


@hookspec
def omni_job_changed(job_id: str | None, status: str, jobs: Mapping[str, int], engine_id: str) -> None:
    """Observe that a job of a server of the engine is in another state. Called in the server's event loop.

    Args:
        job_id: Which. None when the server starts, and tells which jobs it has found.
        status: `"queued"`, `"in_progress"`, `"completed"`, `"failed"`, `"deleted"` or `"expired"`. After the last two
            there is no such job. Empty if `job_id` is None.
        jobs: How many jobs there are in each of the first four states.
        engine_id: The engine's.
    """


@hookspec
def omni_cli(app: click.Group) -> None:
    """Add commands to `omni`."""


# Hooks that are told of something and cannot change it. What they raise is logged and goes no further.
OBSERVERS = frozenset(
    {
        "omni_engine_started",
        "omni_engine_closed",
        "omni_engine_asleep",
        "omni_engine_awake",
        "omni_request_queued",
        "omni_request_refused",
        "omni_request_started",
        "omni_request_step",
        "omni_request_retried",
        "omni_request_finished",
        "omni_request_failed",
        "omni_output_suspect",
        "omni_step_done",
        "omni_stacking_changed",
        "omni_worker_started",
        "omni_worker_died",
        "omni_worker_restarted",
        "omni_replica_state",
        "omni_http_request",
        "omni_http_disconnect",
        "omni_job_changed",
    }
)
# Hooks that change what a worker computes. Plugins that have one must be found by every worker process.
WORKER_HOOKS = ("omni_pipeline_loaded", "omni_encode_prompt")


class Hooks(Protocol):
    """How the layers below the plugin registry call plugins."""

    def notify(self, hook_name: str, /, **arguments: Any) -> None:
        """Tell observers; what they raise is logged and goes no further."""

    def call_strict(self, hook_name: str, /, **arguments: Any) -> None:
        """Call a hook; what a plugin raises comes out, with the plugin's name."""

    def call_first(self, hook_name: str, kind: type, /, **arguments: Any) -> Any:
        """Call a hook until a plugin returns something, which must be of `kind`; None if none does."""

    def call_chain(self, hook_name: str, kind: type, changed: str, /, **arguments: Any) -> Any:
        """Call a hook; what a plugin returns, which must be of `kind`, is the argument `changed` of the next.

        Returns:
            That argument as the last has left it.
        """

    def has(self, hook_name: str, /) -> bool:
        """Return whether any plugin implements a hook."""

    def given_in_code(self, hook_name: str, /) -> tuple[str, ...]:
        """Return the plugins that implement a hook and are not installed: another process does not find them."""
