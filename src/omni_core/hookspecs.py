"""The plugin contract: what a plugin may implement, and the executor it may register.

A plugin is a light module named by an entry point of the group `omni_core`. It marks its functions with
`omni_core.hookimpl`. A hook takes any subset of the arguments listed here, by name. See docs/PLUGIN_AUTHORS.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    import click

    from omni_core.config import OmniDiffusionConfig
    from omni_core.errors import OmniError
    from omni_core.outputs import OmniRequestOutput
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
def omni_configure(config: OmniDiffusionConfig) -> None:
    """Look at the configuration before anything starts. What is raised here stops the engine from starting."""


@hookspec
def omni_pipeline_loaded(pipeline: Any, worker: Any) -> None:
    """Change a pipeline that was just loaded, in every worker: LoRA weights, compilation, another scheduler.

    What is raised here fails the start of that worker, since pictures would differ without the change.
    """


@hookspec
def omni_engine_started(config: OmniDiffusionConfig, executor: Any) -> None:
    """Observe that an engine is ready for requests."""


@hookspec
def omni_engine_closed(config: OmniDiffusionConfig) -> None:
    """Observe that an engine was closed."""


@hookspec
def omni_request_queued(request: OmniDiffusionRequest) -> None:
    """Observe that a request was accepted."""


@hookspec
def omni_request_started(request_id: str, replica: int) -> None:
    """Observe that a worker of `replica` began to work on a request."""


@hookspec
def omni_request_step(request_id: str, step: int, num_steps: int) -> None:
    """Observe that `step` of `num_steps` denoising steps of a request are done (`num_steps` is 0 while unknown).

    Steps that follow each other quickly are reported as one: the last.
    """


@hookspec
def omni_request_finished(output: OmniRequestOutput) -> None:
    """Observe that a request ended with an output, or because somebody aborted it."""


@hookspec
def omni_request_failed(request_id: str, error: OmniError) -> None:
    """Observe that a request ended with an error or ran out of its time."""


@hookspec
def omni_output_suspect(request_id: str, reason: str) -> None:
    """Observe that an output which was given out may be wrong: what served it in company was found wrong since.

    One that is found so before it is given out says so itself, in `output.metrics.suspect`.
    """


@hookspec
def omni_worker_died(replica: int, rank: int, reason: str) -> None:
    """Observe that a worker ended without being asked to."""


@hookspec
def omni_worker_restarted(replica: int, rank: int) -> None:
    """Observe that a worker was replaced and is ready."""


@hookspec
def omni_cli(app: click.Group) -> None:
    """Add commands to `omni`."""


# Hooks that are told of something and cannot change it. What they raise is logged and goes no further.
OBSERVERS = frozenset(
    {
        "omni_engine_started",
        "omni_engine_closed",
        "omni_request_queued",
        "omni_request_started",
        "omni_request_step",
        "omni_request_finished",
        "omni_request_failed",
        "omni_output_suspect",
        "omni_worker_died",
        "omni_worker_restarted",
    }
)


class Hooks(Protocol):
    """How the layers below the plugin registry call plugins."""

    def notify(self, hook_name: str, /, **arguments: Any) -> None:
        """Tell observers; what they raise is logged and goes no further."""

    def call_strict(self, hook_name: str, /, **arguments: Any) -> Any:
        """Call a hook; what a plugin raises comes out, with the plugin's name."""

    def given_in_code(self, hook_name: str, /) -> tuple[str, ...]:
        """Return the plugins that implement a hook and are not installed: another process does not find them."""
