"""Running the requests of one `omni generate` and saving what comes of each as soon as it is there."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omni_core.cli import exit_codes
from omni_core.cli.interruption import Interruption
from omni_core.cli.progress import Reporter, describe_metrics, label_of, make_reporter
from omni_core.cli.saving import SavedFile, SaveOptions, Saver
from omni_core.cli.streams import say
from omni_core.config import OmniDiffusionConfig
from omni_core.engine.engine import DiffusionEngine
from omni_core.engine.handle import RequestHandle
from omni_core.errors import OmniError
from omni_core.hookspecs import hookimpl
from omni_core.media import sound
from omni_core.outputs import OmniRequestOutput
from omni_core.plugins import PluginRegistry
from omni_core.request import OmniDiffusionRequest

# Seconds that an interrupted run waits for the step that is running, and that asking for a sampling rate may take.
_STOP_TIMEOUT_S = 20.0
_ASK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Job:
    """What `omni generate` was asked for.

    Attributes:
        config: The engine's configuration.
        requests: One for each prompt.
        files: `@FILE` of the `extra_args` that were loaded from files.
        save_options: How outputs are saved.
        quiet: Whether errors alone are shown.
        verbose: Whether errors are shown with the worker's traceback.
    """

    config: OmniDiffusionConfig
    requests: list[OmniDiffusionRequest]
    files: Mapping[str, Any]
    save_options: SaveOptions
    quiet: bool = False
    verbose: bool = False


@dataclass(slots=True)
class Result:
    """What became of one request."""

    request: OmniDiffusionRequest
    output: OmniRequestOutput | None = None
    files: list[SavedFile] = field(default_factory=list)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        output = self.output
        metrics = output.metrics if output is not None else None
        return {
            "request_id": self.request.request_id,
            "prompt": self.request.prompt,
            "seed": self.request.seed,
            "finish_reason": output.finish_reason if output is not None else "aborted",
            "files": [str(file.path) for file in self.files],
            "error": self.error,
            "metrics": None if metrics is None else {**dataclasses.asdict(metrics), "total_s": metrics.total_s},
        }


class GenerateRun:
    """Runs a job.

    Args:
        job: What to do.
        plugins: The plugins of this run.
        interruption: Where Ctrl-C and the like are noticed.

    Attributes:
        results: What became of each request so far.
        exit_code: What `omni` shall exit with.
        model: What the pipeline was loaded from, once it is known.
    """

    def __init__(self, job: Job, plugins: PluginRegistry, interruption: Interruption) -> None:
        self.results = [Result(request) for request in job.requests]
        self.exit_code = exit_codes.OK
        self.model = job.config.model
        self._job = job
        self._plugins = plugins
        self._interruption = interruption
        self._index = {request.request_id: index for index, request in enumerate(job.requests)}
        self._news: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()

    def run(self) -> None:
        """Run everything; a signal ends it early, with `exit_code` set.

        Raises:
            OmniError: The engine could not start, or a request does not fit the pipeline.
        """
        self._plugins.register(_Observer(self._news), name=f"omni-generate-{id(self)}")
        try:
            with _request_log_left_out(self._job.config):
                self._run()
        except KeyboardInterrupt:
            self._interruption.tell()
            self.exit_code = self._interruption.exit_code

    def _run(self) -> None:
        if not self._job.quiet:
            _say_loading(self._job.config.model)
        with DiffusionEngine(self._job.config, plugins=self._plugins) as engine:
            handles = self._submit(engine)
            reporter = make_reporter([request.prompt for request in self._job.requests], self._job.quiet)
            self._interruption.is_drawing = True
            try:
                self._follow(engine, reporter)
            except KeyboardInterrupt:
                reporter.close()
                self._interruption.tell()
                self._stop(handles)
                raise
            finally:
                reporter.close()
                self._interruption.is_drawing = False

    def _submit(self, engine: DiffusionEngine) -> list[RequestHandle]:
        handles = []
        for request in self._job.requests:
            handle = engine.submit(request)
            handle.add_done_callback(lambda done: self._news.put(("done", done.request_id, done.result(0))))
            handles.append(handle)
        return handles

    def _follow(self, engine: DiffusionEngine, reporter: Reporter) -> None:
        saver = self._make_saver(engine, reporter)
        to_come = len(self.results)
        while to_come:
            kind, request_id, news = self._news.get()
            index = self._index.get(request_id)
            if index is None:
                continue
            if kind == "started":
                reporter.started(index)
            elif kind == "step":
                reporter.step(index, *news)
            else:
                to_come -= 1
                self._end(index, news, saver, reporter)
        if any(result.output is not None and result.output.error is not None for result in self.results):
            self._blame_engine(engine)

    def _end(self, index: int, output: OmniRequestOutput, saver: Saver, reporter: Reporter) -> None:
        result = self.results[index]
        result.output = output
        reporter.ended(index)
        if output.error is not None:
            result.error = output.error.message
            self._failed(result, str(output.error) if self._job.verbose else output.error.message, reporter)
            if exit_codes.means_engine_died(output.error):
                self.exit_code = exit_codes.ENGINE
            return
        try:
            result.files = saver.save(index, output)
        except (OSError, ValueError, TypeError) as error:
            result.error = f"The output was not saved: {_words(error)}"
            self._failed(result, result.error, reporter)
            return
        for file in result.files:
            reporter.say(f"{file.path}  {file.note}, seed {output.seed}, {describe_metrics(output.metrics)}")
        # Not kept: a thousand pictures would be.
        output.output = {}

    def _failed(self, result: Result, message: str, reporter: Reporter) -> None:
        self.exit_code = max(self.exit_code, exit_codes.FAILED)
        reporter.say(f"Error: {label_of(result.request.prompt)}: {message}", err=True)

    def _blame_engine(self, engine: DiffusionEngine) -> None:
        try:
            engine.check_health()
        except OmniError:
            self.exit_code = exit_codes.ENGINE

    def _stop(self, handles: list[RequestHandle]) -> None:
        """Abort what runs and wait for it, at most for the step that is running."""
        for handle in handles:
            handle.abort()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for result, handle in zip(self.results, handles, strict=True):
            with contextlib.suppress(TimeoutError):
                if result.output is None:
                    result.output = handle.result(max(0.0, deadline - time.monotonic()))
            if not result.files and result.error is None:
                ended = result.output
                result.error = ended.error.message if ended is not None and ended.error is not None else "Interrupted."

    def _make_saver(self, engine: DiffusionEngine, reporter: Reporter) -> Saver:
        info = engine.pipeline_info
        self.model = info.model if info is not None else self._job.config.model or "omni/digits"
        return Saver(
            self._job.save_options,
            self._job.requests,
            self._job.files,
            model=self.model,
            pipeline=info.class_name if info is not None else None,
            ask_sampling_rate=lambda: _ask_sampling_rate(engine),
            warn=lambda line: reporter.say(f"Warning: {line}", err=True),
        )


class _Observer:
    """A plugin for the time of the run, that passes on what happens to requests."""

    def __init__(self, news: queue.SimpleQueue[tuple[str, Any, Any]]) -> None:
        self._news = news

    @hookimpl
    def omni_request_started(self, request_id: str) -> None:
        self._news.put(("started", request_id, None))

    @hookimpl
    def omni_request_step(self, request_id: str, step: int, num_steps: int) -> None:
        self._news.put(("step", request_id, (step, num_steps)))


@contextlib.contextmanager
def _request_log_left_out(config: OmniDiffusionConfig) -> Iterator[None]:
    """Keep failed requests out of the log unless a level was asked for: this command tells of them itself."""
    request_log = logging.getLogger("omni_core.request_log")
    before = request_log.level
    if config.sources()["log_level"] == "default":
        request_log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        request_log.setLevel(before)


def _ask_sampling_rate(engine: DiffusionEngine) -> int | None:
    try:
        rate: int | None = engine.collective_rpc(sound.find_sampling_rate, _ASK_TIMEOUT_S, unique_reply_rank=0)
    except OmniError:  # an executor whose workers are none of ours
        return None
    return rate


def _say_loading(model: str | None) -> None:
    say(f"Loading {model or 'the small model that ships with omni'} …")


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
