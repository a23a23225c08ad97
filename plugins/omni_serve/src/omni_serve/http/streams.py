"""Answers that end when the client goes away, whether they are streams or not."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from omni_core.log import get_logger
from omni_serve.errors import api_error
from omni_serve.tasks import end_tasks

log = get_logger(__name__)

T = TypeVar("T")

# Proxies close a connection on which nothing comes for a minute, some after less.
KEEP_ALIVE_S = 15.0
# nginx's own number, for the log: the client has closed the connection.
CLIENT_GONE = 499
# In the state of a request whose client has closed the connection: the status of a stream was sent before.
IS_GONE = "is_client_gone"


class ClientGoneError(Exception):
    """The client has closed the connection."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await work, and cancel it if the client goes away meanwhile.

    Args:
        request: Whose body has been read.
        work: What to do.

    Raises:
        ClientGoneError: The client is gone; the work was cancelled, and has ended.
    """
    return await _first(asyncio.ensure_future(work), _wait_for_disconnect(request.receive))


async def _first(work: asyncio.Future[T], disconnect: Coroutine[Any, Any, None]) -> T:
    gone = asyncio.ensure_future(disconnect)
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientGoneError
    finally:
        await end_tasks(gone, work)
        # An error that it raised has this frame in its traceback: a cycle, with all that the request held.
        del work


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events. The source is closed when it has ended, failed, or the client is gone.

    Starlette's own streams notice a client that is gone at the next event only, on newer servers.

    Args:
        events: Pairs of the event's name (empty for none) and its data, which become JSON. What it raises becomes the
            last event, in OpenAI's form.
        resources: Closed at the end, however it comes.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[tuple[str, dict[str, Any]]], resources: contextlib.AsyncExitStack) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with self._resources:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await _first(asyncio.ensure_future(self._send_all(send)), _wait_for_disconnect(receive))
            except ClientGoneError:
                scope.setdefault("state", {})[IS_GONE] = True

    async def _send_all(self, send: Send) -> None:
        async def write(text: str, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

        try:
            async with contextlib.aclosing(with_ticks(self._events, KEEP_ALIVE_S)) as ticking:
                async for event in ticking:
                    if event is None:
                        await write(": keep-alive\n\n")
                    else:
                        name, data = event
                        await write((f"event: {name}\n" if name else "") + f"data: {json.dumps(data)}\n\n")
        except Exception as error:
            answer = api_error(error)
            log.warning("a stream ended with an error", status=answer.status, reason=answer.message)
            await write(f"data: {json.dumps(answer.body)}\n\n")
        await write("", more=False)


async def with_ticks(source: AsyncIterator[T], seconds: float) -> AsyncGenerator[T | None, None]:
    """Yield what a source yields, and None each time that nothing has come for so long.

    Args:
        source: Stays the caller's to close. Leaving the loop ends the wait for its next value.
        seconds: How long.
    """
    following: asyncio.Future[T] | None = None
    try:
        while True:
            following = asyncio.ensure_future(_next_of(source))
            while not (await asyncio.wait((following,), timeout=seconds))[0]:
                yield None
            yield following.result()
    except StopAsyncIteration:
        pass
    finally:
        if following is not None:
            await end_tasks(following)


async def _next_of(events: AsyncIterator[T]) -> T:
    return await anext(events)
