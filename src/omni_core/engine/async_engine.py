"""`AsyncDiffusionEngine`: the engine for asyncio programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any

from omni_core.config import OmniDiffusionConfig
from omni_core.engine.call_threads import CallThreads
from omni_core.engine.engine import STATS_TIMEOUT_S, DiffusionEngine
from omni_core.engine.handle import RequestEvent, RequestHandle
from omni_core.engine_place import remember_imports
from omni_core.outputs import EngineStats, OmniRequestOutput, RequestEstimate
from omni_core.plugins import PluginRegistry
from omni_core.request import OmniDiffusionRequest

# Seconds that closing waits for pending calls. They fail when the engine is closed, unless the executor hangs.
_JOIN_S = 1.0


class AsyncDiffusionEngine:
    """A `DiffusionEngine` whose calls are awaited.

    It is not bound to an event loop: each call uses the running loop, and several loops may share the engine::

        async with AsyncDiffusionEngine(OmniDiffusionConfig()) as engine:
            async for event in engine.generate(OmniDiffusionRequest(prompt="a red seven")):
                print(event.kind, event.step, event.num_steps)

    The constructor loads the pipeline and blocks; in a running loop use `await AsyncDiffusionEngine.create(…)`. Nothing
    else blocks, and the default pool of the loop is not used: events come from the engine's thread, and each call that
    waits for workers runs in a separate thread.

    Args:
        config: The configuration; None takes it from the environment and `omni.toml`.
        pipeline: A pipeline object to use instead of loading `config.model` (inline executor only).
        plugins: The plugins to use; None takes those that are installed.

    Raises:
        OmniError: As `DiffusionEngine` does.
    """

    def __init__(
        self,
        config: OmniDiffusionConfig | None = None,
        *,
        pipeline: Any = None,
        plugins: PluginRegistry | None = None,
    ) -> None:
        self._calls = CallThreads()
        self.engine = DiffusionEngine(config, pipeline=pipeline, plugins=plugins)

    @classmethod
    async def create(
        cls,
        config: OmniDiffusionConfig | None = None,
        *,
        pipeline: Any = None,
        plugins: PluginRegistry | None = None,
    ) -> AsyncDiffusionEngine:
        """Make an engine without blocking the running loop while the pipeline loads."""
        with remember_imports():
            return await CallThreads().run(cls, config, pipeline=pipeline, plugins=plugins)

    async def generate(self, request: OmniDiffusionRequest) -> AsyncIterator[RequestEvent]:
        """Submit a request and yield its events. The last one, `"finished"`, carries the output.

        The request is aborted if the consumer is cancelled or closes the iterator early.

        Raises:
            RequestError: The request does not fit the pipeline, or its id is in use.
            EngineOverloadedError: The maximum number of requests is waiting.
            EngineClosedError: The engine is closed.
        """
        events: asyncio.Queue[RequestEvent] = asyncio.Queue()
        handle = self._submit_all([request], [events.put_nowait])[0]
        try:
            while True:
                event = await events.get()
                yield event
                if event.kind == "finished":
                    return
        finally:
            handle.abort()  # does nothing once it has ended

    async def step(self, requests: Sequence[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        """Run requests and wait for all of them. Cancelling the wait aborts them.

        Returns:
            One output per request, in their order, also of those that failed.

        Raises:
            RequestError: A request does not fit the pipeline; none was started.
            EngineOverloadedError: The maximum number of requests is waiting; none was started.
            EngineClosedError: The engine is closed.
        """
        done: list[asyncio.Event] = [asyncio.Event() for _ in requests]
        listeners = [_on_finished(event) for event in done]
        handles = self._submit_all(requests, listeners)
        try:
            for event in done:
                await event.wait()
        finally:
            for handle in handles:
                handle.abort()
        return [handle.result(0) for handle in handles]

    def abort(self, request_id: str) -> None:
        """End a request before it starts, or at its next denoiser call. Returns at once."""
        self.engine.abort(request_id)

    async def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Any:
        """Call a method on every worker, as `DiffusionEngine.collective_rpc` does."""
        return await self._calls.run(self.engine.collective_rpc, method, timeout, args, kwargs, unique_reply_rank)

    async def check_health(self) -> None:
        """Return if the engine can serve requests, as `DiffusionEngine.check_health` does."""
        await self._calls.run(self.engine.check_health)

    async def stats(self, timeout: float | None = STATS_TIMEOUT_S, *, ask_workers: bool = True) -> EngineStats:
        """Return statistics of the engine, as `DiffusionEngine.stats` does."""
        if not ask_workers:
            return self.engine.stats(ask_workers=False)
        return await self._calls.run(self.engine.stats, timeout)

    def estimate(self, request: OmniDiffusionRequest) -> RequestEstimate | None:
        """Return how long a request will take, as `DiffusionEngine.estimate` does. Returns at once."""
        return self.engine.estimate(request)

    async def sleep(self, level: int = 1, timeout: float | None = None) -> None:
        """Free accelerator memory until `wake_up`, as `DiffusionEngine.sleep` does."""
        await self._calls.run(self.engine.sleep, level, timeout)

    async def wake_up(self, timeout: float | None = None) -> None:
        """Restore the weights and serve waiting requests, as `DiffusionEngine.wake_up` does."""
        await self._calls.run(self.engine.wake_up, timeout)

    async def close(self) -> None:
        """End running requests, fail waiting ones, and end the workers. May be repeated."""
        await self._calls.run(self._close)

    async def __aenter__(self) -> AsyncDiffusionEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _close(self) -> None:
        try:
            self.engine.close()
        finally:
            self._calls.join(_JOIN_S)

    def _submit_all(
        self, requests: Sequence[OmniDiffusionRequest], listeners: Sequence[Callable[[RequestEvent], None]]
    ) -> list[RequestHandle]:
        loop = asyncio.get_running_loop()
        handles = self.engine.submit_all(requests)
        for handle, listener in zip(handles, listeners, strict=True):
            handle.subscribe(_into_loop(loop, handle, listener))
        return handles


def _into_loop(
    loop: asyncio.AbstractEventLoop, handle: RequestHandle, listener: Callable[[RequestEvent], None]
) -> Callable[[RequestEvent], None]:
    def pass_on(event: RequestEvent) -> None:
        try:
            loop.call_soon_threadsafe(listener, event)
        except RuntimeError:  # the loop was closed: the result is not needed any more
            handle.abort()

    return pass_on


def _on_finished(done: asyncio.Event) -> Callable[[RequestEvent], None]:
    def listener(event: RequestEvent) -> None:
        if event.kind == "finished":
            done.set()

    return listener
