"""A real server in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from engines import PATIENCE_S, plugins

from omni_core import OmniDiffusionConfig
from omni_serve.server import Server, address_of, bind, serve
from omni_serve.settings import ServeSettings


@contextlib.contextmanager
def served(*observers: Any, settings: ServeSettings | None = None, **fields: Any) -> Iterator[tuple[str, Server]]:
    """Serve an engine that these observers watch; give its address, with a slash at the end, and the server."""
    config = OmniDiffusionConfig(**{"log_level": "error", "max_waiting": 100, **fields})
    registry = plugins(*observers)
    started: Future[Server] = Future()
    with bind("127.0.0.1", 0) as bound:

        def run() -> None:
            try:
                serving = serve(
                    config,
                    settings or ServeSettings(port=0),
                    bound,
                    plugins=registry,
                    on_started=started.set_result,
                )
                asyncio.run(serving)
            except BaseException as error:
                if started.done():
                    raise
                started.set_exception(error)

        thread = threading.Thread(target=run, name="server")
        thread.start()
        server = started.result(PATIENCE_S)
        try:
            yield address_of(bound), server
        finally:
            server.request_stop()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
