"""A custom executor in one file: it answers a request that it has answered before from memory.

    python examples/example_custom_executor.py FOLDER

Five methods make an executor; no packaging is needed. `executor_class` takes the class, or its import path, as in
`PYTHONPATH=examples omni generate "a red seven" --executor-class example_custom_executor:CachingExecutor`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from omni_core import (
    DiffusionEngine,
    DiffusionExecutor,
    OmniDiffusionConfig,
    OmniDiffusionRequest,
    OmniRequestOutput,
    PipelineInfo,
    RequestMetrics,
)
from omni_core.calls import call_error, call_name
from omni_core.errors import ExecutorError, RPCError, RPCTimeoutError
from omni_core.executor import WORKER_OPTIONS
from omni_core.serial_thread import SerialThread
from omni_core.timeouts import is_done_within

MOST_ANSWERS = 256
# Calls that leave the model as it is. After any other, such as one that loads a LoRA, old answers may be wrong.
HARMLESS_CALLS = frozenset({"check_health", "describe_pipeline", "sleep", "stats", "wake_up"})


class CachingExecutor(DiffusionExecutor):
    """Runs omni's worker in a thread, and keeps what it made. Worker and answers are touched in that thread alone."""

    supported_options: ClassVar[frozenset[str]] = WORKER_OPTIONS

    def _init_executor(self) -> None:
        self.hits = 0
        self._answers: dict[str | None, OmniRequestOutput] = {}
        self._worker: Any = None
        self._thread = SerialThread("omni-caching-worker")
        self._thread.submit(self._load).result(self.config.startup_timeout_s)

    def _load(self) -> None:
        from omni_core.worker.worker import worker_class  # imports torch, which is not needed to name this class

        self._worker = worker_class(self.config)(self.config, hooks=self.plugins)

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        """Run those requests that were never answered; the others take their answer from memory."""
        return self._thread.submit(self._answer, list(requests)).result()

    def _answer(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        new = [request for request in requests if _key(request) not in self._answers]
        made = {output.request_id: output for output in self._worker.execute_model(new)} if new else {}
        outputs = [made.get(one.request_id) or self._copy(self._answers[_key(one)], one) for one in requests]
        self.hits += len(requests) - len(new)
        for request in new:
            if _key(request) is not None and made[request.request_id].finish_reason == "finished":
                self._answers[_key(request)] = self._copy(made[request.request_id], request)
        while len(self._answers) > MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]  # the oldest
        return outputs

    @staticmethod
    def _copy(output: OmniRequestOutput, request: OmniDiffusionRequest) -> OmniRequestOutput:
        # Callers may draw into their pictures, and the engine writes into the metrics.
        return replace(output, request_id=request.request_id, output=deepcopy(output.output), metrics=RequestMetrics())

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Any:
        """Call a method of the one worker, between two batches."""
        if unique_reply_rank not in (None, 0):
            raise RPCError(f"There is no rank {unique_reply_rank}: this executor has one worker, rank 0.")
        future = self._thread.submit(self._call, method, args, kwargs)
        if not is_done_within(future, timeout):
            future.cancel()
            raise RPCTimeoutError(f"The call {call_name(method)!r} did not return within {timeout:g} s.")
        result = future.result()
        return [result] if unique_reply_rank is None else result

    def _call(self, method: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        if method not in HARMLESS_CALLS:
            self._answers.clear()
        try:
            return self._worker.call(method, args, kwargs)
        except Exception as error:
            raise call_error(call_name(method), error) from error

    def describe_pipeline(self) -> PipelineInfo | None:
        """Say what the pipeline takes, so that a request that does not fit is refused at once (optional)."""
        info: PipelineInfo = self.collective_rpc("describe_pipeline", unique_reply_rank=0)
        return info

    def check_health(self) -> None:
        """Return if the thread is there to take work."""
        if self._worker is None or not self._thread.is_alive:
            raise ExecutorError("The caching executor was shut down, or never started.")

    def shutdown(self) -> None:
        """Let go of the pipeline, in the thread that made it, and end the thread."""
        if self._worker is None:  # it did not load, and may still be at it
            self._thread.close(0.0)
        else:
            self._thread.close(30.0, last=self._worker.close)


# Fields of a request on which its output does not depend.
_CHANGE_NOTHING = {"request_id", "priority", "timeout_s", "preview_every", "previews", "metadata"}


def _key(request: OmniDiffusionRequest) -> str | None:
    """Return the same text for requests that give the same output; None if the request holds more than plain data."""
    try:
        return request.model_dump_json(exclude=_CHANGE_NOTHING)
    except ValueError:  # pictures, tensors, callbacks
        return None


def main() -> None:
    """Ask twice for the same four pictures and once for another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    prompts = ("a red seven", "a blue two", "a green four", "a purple nine")
    with DiffusionEngine(OmniDiffusionConfig(executor_class=CachingExecutor)) as engine:
        assert isinstance(engine.executor, CachingExecutor)
        for name, seed in (("first", 1), ("again", 1), ("other seed", 2)):
            begin, hits = time.perf_counter(), engine.executor.hits
            outputs = engine.step([OmniDiffusionRequest(prompt=prompt, seed=seed) for prompt in prompts])
            seconds = time.perf_counter() - begin
            for prompt, output in zip(prompts, outputs, strict=True):
                output.raise_for_error().images[0].save(folder / f"{prompt}, {name}.png")
            print(f"{name}: {len(outputs)} pictures in {seconds:.4f} s, {engine.executor.hits - hits} from memory")


if __name__ == "__main__":
    main()
