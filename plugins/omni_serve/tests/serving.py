"""A server for tests: the real one, in a thread of this process or in a process of its own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import openai
from PIL import Image

from omni_core import OmniDiffusionConfig, OmniDiffusionRequest, OmniRequestOutput, PluginRegistry, hookimpl
from omni_serve.server import Server, address_of, bind, serve
from omni_serve.settings import ServeSettings

PATIENCE_S = 60.0
FACTORIES = "omni_core.testing.pipelines"


class Observer:
    """A plugin that notes the outputs of requests by their ids, and what the server does."""

    def __init__(self) -> None:
        self.ended: dict[str, OmniRequestOutput] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.http: list[tuple[str, str, int]] = []
        self.seconds: list[float] = []
        self.disconnects: list[str] = []
        self.jobs: list[tuple[str | None, str, dict[str, int]]] = []
        # What `/metrics` shows; None as if there were no plugin for it.
        self.text: str | None = None

    @hookimpl
    def omni_metrics(self) -> str | None:
        return self.text

    @hookimpl
    def omni_http_request(self, route: str, method: str, status: int, seconds: float) -> None:
        self.http.append((method, route, status))
        self.seconds.append(seconds)

    @hookimpl
    def omni_http_disconnect(self, route: str) -> None:
        self.disconnects.append(route)

    @hookimpl
    def omni_job_changed(self, job_id: str | None, status: str, jobs: Mapping[str, int]) -> None:
        self.jobs.append((job_id, status, dict(jobs)))

    @hookimpl
    def omni_request_queued(self, request: OmniDiffusionRequest) -> None:
        self.metadata[request.request_id] = request.metadata

    @hookimpl
    def omni_request_finished(self, output: OmniRequestOutput) -> None:
        self.ended[output.request_id] = output

    @hookimpl
    def omni_request_failed(self, output: OmniRequestOutput) -> None:
        self.ended[output.request_id] = output


class ThreadServer:
    """A server in a thread, to which tests can look inside.

    Attributes:
        observer: Knows what has become of the requests.
        url: Its address, with a slash at the end.
        server: What runs; `server.service` has the engine.
    """

    def __init__(self, config: OmniDiffusionConfig, settings: ServeSettings) -> None:
        self.observer = Observer()
        plugins = PluginRegistry(disabled="omni-metrics")  # which may be installed or not
        plugins.register(self.observer, name="observer")
        self._bound = bind("127.0.0.1", 0)
        self.url = address_of(self._bound)
        started: Future[Server] = Future()
        self._ended: Future[None] = Future()

        def run() -> None:
            try:
                asyncio.run(serve(config, settings, self._bound, plugins=plugins, on_started=started.set_result))
            except BaseException as error:
                self._ended.set_exception(error)
                if not started.done():
                    started.set_exception(error)
            else:
                self._ended.set_result(None)

        self._thread = threading.Thread(target=run, name="server")
        self._thread.start()
        self.server = started.result(PATIENCE_S)

    @property
    def service(self) -> Any:
        return self.server.service

    def stop(self) -> None:
        """Begin to end, as SIGTERM does."""
        with contextlib.suppress(RuntimeError):
            self.server.request_stop()

    def close(self) -> None:
        if not self._ended.done():
            self.stop()
        self._ended.result(PATIENCE_S)
        self._thread.join(PATIENCE_S)
        self._bound.close()


@contextlib.contextmanager
def thread_server(settings: ServeSettings | None = None, **fields: Any) -> Iterator[ThreadServer]:
    fields = {"log_level": "warning", "max_waiting": 100, **fields}
    running = ThreadServer(OmniDiffusionConfig(**fields), settings or ServeSettings(port=0))
    try:
        yield running
    finally:
        running.close()


class ProcessServer:
    """`omni serve`, as a user starts it.

    Args:
        folder: Where it runs.
        arguments: Of the command.
        python: What to write for `python`: that of `warm_python` has imported torch, and a new one takes seconds. The
            process of a new one is the server itself, for tests that kill it.
        environment: More variables.
    """

    def __init__(
        self, folder: Path, *arguments: str, python: Sequence[str] = (sys.executable,), **environment: str
    ) -> None:
        self.log = folder / "server.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_")}
        with self.log.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                [*python, "-m", "omni_core", "serve", "--port", "0", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**kept, **environment},
            )
        self.url = self._wait_for_address(begin)

    def _wait_for_address(self, begin: int) -> str:
        tick = threading.Event()
        for _ in range(int(PATIENCE_S / 0.02)):
            text = self.log.read_bytes()[begin:].decode(errors="replace")
            if found := re.search(r"serving.*address\"?[=:] ?\"?(http://[^\s\"]+)", text):
                return found[1]
            assert self.process.poll() is None, text
            tick.wait(0.02)
        raise AssertionError(self.log.read_text())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE_S) -> int:
        return self.process.wait(seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def process_server(
    folder: Path, *arguments: str, python: Sequence[str] = (sys.executable,), **environment: str
) -> Iterator[ProcessServer]:
    running = ProcessServer(folder, *arguments, python=python, **environment)
    try:
        yield running
    finally:
        running.close()


# Starts a server with the Python of `warm_python`.
ServeProcess = Callable[..., contextlib.AbstractContextManager[ProcessServer]]


def client_of(running: ThreadServer | ProcessServer, **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}v1", **{"api_key": "EMPTY", "max_retries": 0, **settings})


def picture_of(b64_json: str | None) -> Image.Image:
    assert b64_json is not None
    picture = Image.open(io.BytesIO(base64.b64decode(b64_json)))
    picture.load()
    return picture


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
