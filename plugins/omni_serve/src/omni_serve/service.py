"""What the endpoints share: the engine, and running requests on it so that whoever is gone costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, Literal, TypeVar

from omni_core import AsyncDiffusionEngine, OmniDiffusionRequest, OmniRequestOutput, RequestEvent, RequestHandle
from omni_core.errors import EngineClosedError, EngineOverloadedError
from omni_core.outputs import RequestEstimate
from omni_core.pipeline_info import PipelineInfo
from omni_serve.errors import ApiError, api_error, retry_after
from omni_serve.kept_jobs import KeptJobs
from omni_serve.observers import Observers
from omni_serve.outputs import Encoder
from omni_serve.requests.engine_requests import LENGTHS_OF_SOUND
from omni_serve.requests.pictures import BYTES_OF_PIXEL, PictureRoom
from omni_serve.settings import ServeSettings
from omni_serve.threads import thread_pool

T = TypeVar("T")

# Threads that decode and encode pictures: none of it is done in the event loop.
_CODEC_THREADS = 2
# So many of the largest pictures may be held at a time.
_PICTURES_AT_ONCE = 4
# Keywords that tell what a pipeline makes, since its class does not.
_OF_VIDEO = frozenset({"num_frames", "video_length", "num_videos_per_prompt", "fps", "frame_rate", "video"})
_OF_SOUND = frozenset({*LENGTHS_OF_SOUND, "num_waveforms_per_prompt"})
# Seconds after which clients of a server that is ending may find another.
_DRAINING_RETRY_S = 5.0


class Service:
    """An engine that serves HTTP requests.

    Args:
        engine: The engine. It stays the caller's to close.
        settings: What the operator says.
        jobs: Keeps and runs jobs. They stay the caller's to close.
        observers: The plugins of the engine.

    Attributes:
        is_draining: Whether the server is to end: new work is refused.
        is_cut_off: Whether what was accepted is ended too.
        room: For the pictures that clients have sent.
        started_at: Unix time in seconds.
        sampling_rate: Samples a second of what the pipeline makes, None if it does not say; None until it was asked.
    """

    def __init__(
        self, engine: AsyncDiffusionEngine, settings: ServeSettings, jobs: KeptJobs, observers: Observers
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.jobs = jobs
        self.observers = observers
        self.is_draining = False
        self.is_cut_off = False
        self.room = PictureRoom(_PICTURES_AT_ONCE * BYTES_OF_PIXEL * settings.max_upload_pixels)
        self.started_at = int(time.time())
        self.sampling_rate: tuple[int | None] | None = None
        self._codecs = thread_pool(_CODEC_THREADS, "omni-serve-codec")
        # Of its own: numbers are wanted the most while all others are busy.
        self._scrapes = thread_pool(1, "omni-serve-metrics")
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._running: set[str] = set()
        # With those that were aborted and have not ended yet. The engine's thread removes them.
        self._used_ids: set[str] = set()

    @property
    def info(self) -> PipelineInfo | None:
        """What the pipeline takes; None if the executor cannot tell."""
        return self.engine.engine.pipeline_info

    @functools.cached_property
    def takes(self) -> frozenset[str]:
        """The keywords of the pipeline; empty if they are not known."""
        return frozenset(() if self.info is None else self.info.parameters)

    @property
    def kind(self) -> Literal["image", "video", "audio"]:
        """What the pipeline makes, as far as its keywords tell."""
        return "video" if self.takes & _OF_VIDEO else "audio" if self.takes & _OF_SOUND else "image"

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Encodes what the pipeline makes."""
        return Encoder(self.model_name, None if self.info is None else self.info.class_name)

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        info = self.info
        loaded = info.model if info is not None else self.engine.engine.config.model
        return self.settings.served_model_name or loaded or "omni/digits"

    def check_model(self, name: str | None) -> None:
        """Return if a client means the model that is served.

        Raises:
            ApiError: It means another.
        """
        if name not in (None, "", self.model_name):
            raise ApiError(
                404,
                f"The model {name!r} is not served here: this server has {self.model_name!r}.",
                param="model",
                code="model_not_found",
            )

    def check_makes(self, kind: Literal["image", "video", "audio"]) -> None:
        """Return unless the model is known to make something else.

        Raises:
            ApiError: It does; the message says where to ask for that.
        """
        if self.kind == kind or (self.kind == "image" and "num_images_per_prompt" not in self.takes):
            return  # or nothing in its signature says what it makes
        where = {
            "image": "pictures: use /v1/images/generations",
            "video": "videos: use /v1/videos",
            "audio": "sound: use /v1/audio/speech or /v1/audio/generations",
        }
        raise ApiError(400, f"The model makes {where[self.kind]}.", code="wrong_kind")

    def check_takes(self, keyword: str, field: str) -> None:
        """Return if the pipeline has the keyword that a field of a body stands for.

        Raises:
            ApiError: It has not.
        """
        if keyword not in self.takes:
            raise ApiError(400, "The model does not let the length be chosen.", param=field, code="invalid_value")

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run something that computes, such as encoding a picture, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._codecs, function, *args)

    async def metrics(self) -> str | None:
        """Return the text of `/metrics`; None if no plugin has any.

        Raises:
            PluginError: A plugin failed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._scrapes, self.observers.metrics)

    def draining(self) -> ApiError:
        """Return the answer to what comes too late."""
        return ApiError(
            503,
            "The server is shutting down and takes no more work.",
            code="draining",
            headers=retry_after(_DRAINING_RETRY_S),
        )

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a piece of work for whose end draining waits.

        Raises:
            ApiError: The server is ending.
        """
        if self.is_draining:
            raise self.draining()
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def events(
        self, requests: list[OmniDiffusionRequest], *, of_job: bool = False
    ) -> AsyncGenerator[tuple[int, RequestEvent], None]:
        """Submit requests, all or none, and yield their events with the number of the request, until all have ended.

        Leaving the loop aborts those that have not.

        Args:
            requests: Which. One whose id another has that runs is replaced by one with a longer id.
            of_job: Whether they are those of a job, whose runner says when they are to end.

        Raises:
            ApiError: They are refused.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[int, RequestEvent]] = asyncio.Queue()
        self._give_free_ids(requests)
        try:
            handles = self.engine.engine.submit_all(requests)
        except EngineOverloadedError as error:
            raise api_error(error, self._seconds_until_room(requests[0])) from error
        for handle in handles:
            if not of_job:
                self._running.add(handle.request_id)
            self._used_ids.add(handle.request_id)
            handle.add_done_callback(self._free_id)
        try:
            for number, handle in enumerate(handles):
                handle.subscribe(_passing_on(loop, number, events))
            left = len(handles)
            while left:
                number, event = await events.get()
                left -= event.kind == "finished"
                yield number, event
        finally:
            for handle in handles:
                handle.abort()  # does nothing once it has ended
                self._running.discard(handle.request_id)

    def _give_free_ids(self, requests: list[OmniDiffusionRequest]) -> None:
        """Let requests have ids that no other has: clients choose them, and may send one twice.

        The first may be that of a client that is gone, which the engine has not ended yet.
        """
        for number, request in enumerate(requests):
            if request.request_id in self._used_ids:
                longer = f"{request.request_id}.{secrets.token_hex(4)}"
                requests[number] = request.model_copy(update={"request_id": longer})

    def _free_id(self, handle: RequestHandle) -> None:
        self._used_ids.discard(handle.request_id)

    async def run(
        self,
        requests: list[OmniDiffusionRequest],
        on_event: Callable[[int, RequestEvent], None] = lambda number, event: None,
        *,
        of_job: bool = False,
    ) -> list[OmniRequestOutput]:
        """Run requests, and return their outputs in order.

        Args:
            requests: Which.
            on_event: Called with each event.
            of_job: See `events`.

        Raises:
            ApiError: They are refused.
            OmniError: One of them failed; the others are aborted.
        """
        outputs: dict[int, OmniRequestOutput] = {}
        async with contextlib.aclosing(self.events(requests, of_job=of_job)) as events:
            async for number, event in events:
                on_event(number, event)
                if event.output is not None:
                    outputs[number] = event.output.raise_for_error()
        return [outputs[number] for number in range(len(requests))]

    def abort_all(self) -> None:
        """End every request that runs for a client, and the reading of bodies."""
        self.is_cut_off = True
        for request_id in list(self._running):
            self.engine.abort(request_id)

    async def wait_until_idle(self, seconds: float) -> bool:
        """Wait for the end of the work that was admitted; return whether it came in time."""
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        return self._idle.is_set()

    def close(self) -> None:
        """End the threads."""
        for pool in (self._codecs, self._scrapes):
            pool.shutdown(wait=True, cancel_futures=True)

    def estimate(self, request: OmniDiffusionRequest) -> RequestEstimate | None:
        """Return when a request that waits or runs will be done; None while that is not known."""
        try:
            return self.engine.engine.estimate(request)
        except EngineClosedError:
            return None

    def _seconds_until_room(self, request: OmniDiffusionRequest) -> float:
        """Return in how many seconds one of those that wait will begin, as far as that can be told."""
        estimate = self.estimate(request)
        return 1.0 if estimate is None else estimate.queue_s / max(1, estimate.position)


def _passing_on(
    loop: asyncio.AbstractEventLoop, number: int, events: asyncio.Queue[tuple[int, RequestEvent]]
) -> Callable[[RequestEvent], None]:
    def pass_on(event: RequestEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(events.put_nowait, (number, event))

    return pass_on
