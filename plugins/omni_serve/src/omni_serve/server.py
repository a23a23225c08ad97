"""Running the application: the socket, signals, and an end that answers what was accepted."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from omni_core import AsyncDiffusionEngine, OmniDiffusionConfig, PluginRegistry
from omni_core.errors import ConfigError
from omni_core.log import get_logger
from omni_serve.app import make_app
from omni_serve.http.connection import Connection
from omni_serve.jobs.store import JobStore
from omni_serve.kept_jobs import KeptJobs
from omni_serve.making.jobs import JobMaker
from omni_serve.observers import Observers
from omni_serve.service import Service
from omni_serve.settings import ServeSettings
from omni_serve.tasks import end_tasks

log = get_logger(__name__)

# Connections that may wait to be taken, as uvicorn has it.
_BACKLOG = 2048
# Seconds that connections may take to end once all that was accepted is answered.
_CLOSE_S = 5
# Seconds between the abort of what was still running and the end of the connections: their last events are sent.
_LAST_WORDS_S = 2.0


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and does not listen yet: before a large model is loaded, not after.

    Raises:
        ConfigError: The address cannot be used.
    """
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. Choose another with --host or --port."
        ) from None
    return bound


def address_of(bound: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class Server(uvicorn.Server):
    """Ends in order: the first signal lets what was accepted be answered, the second ends it at once.

    uvicorn's own way is to wait for open answers without telling them, and then to cut them off.

    Args:
        config: Of uvicorn.
        service: What is served.

    Attributes:
        service: The same.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal has come and all is answered."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().serve(sockets)
        finally:
            if self._draining is not None:
                await end_tasks(self._draining)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM; unlike uvicorn, do not raise them again: the program ends by itself."""
        if self._loop is None:
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        try:
            before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        except ValueError:  # not the main thread: whoever runs this ends it by `stop`
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or, if that has begun, end at once."""
        self.request_stop()

    def request_stop(self) -> None:
        """Begin to end. From any thread."""
        assert self._loop is not None
        # In a context of its own: that of a signal is of whatever it interrupts, with the id of its request.
        self._loop.call_soon_threadsafe(self.stop, context=contextvars.Context())

    def stop(self) -> None:
        """Begin to end, or, if that has begun, end at once. In the loop's thread."""
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        else:
            log.warning("ending at once")
            self.service.abort_all()
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        service = self.service
        service.is_draining = True
        seconds = service.settings.drain_timeout_s
        log.warning("shutting down: what was accepted is finished", at_most_s=seconds)
        begun = time.monotonic()
        # Jobs that have not begun are kept, and begin at the next start.
        jobs = asyncio.ensure_future(service.jobs.drain(seconds))
        if not await service.wait_until_idle(seconds):
            log.warning("some requests were not finished in time, and are aborted")
            service.abort_all()
            await service.wait_until_idle(_LAST_WORDS_S)
        await jobs
        log.info("all is answered", seconds=round(time.monotonic() - begun, 3))
        self.should_exit = True


async def serve(
    config: OmniDiffusionConfig,
    settings: ServeSettings,
    bound: socket.socket,
    *,
    plugins: PluginRegistry | None = None,
    on_started: Callable[[Server], None] = lambda server: None,
) -> None:
    """Load the pipeline and serve it until a signal comes.

    Args:
        config: Of the engine.
        settings: Of the server.
        bound: Where to listen.
        plugins: The plugins to use; None takes those that are installed.
        on_started: Called with the server before it takes the first connection.

    Raises:
        OmniError: The pipeline cannot be loaded, or the data folder not be used.
    """
    places = config.max_num_seqs * config.data_parallel_size
    store = JobStore(
        settings.data_dir,
        expires_after_s=settings.job_expiry_s,
        max_bytes=settings.max_job_bytes,
        max_unfinished=None if config.max_waiting is None else config.max_waiting + places,
    )
    try:
        engine = await AsyncDiffusionEngine.create(config, plugins=plugins)
        try:
            observers = Observers(plugins, engine.engine.engine_id)
            await _serve(engine, settings, bound, store, observers, on_started)
        finally:
            await engine.close()
    finally:
        store.close()


async def _serve(  # noqa: PLR0917  # each is the caller's to close
    engine: AsyncDiffusionEngine,
    settings: ServeSettings,
    bound: socket.socket,
    store: JobStore,
    observers: Observers,
    on_started: Callable[[Server], None],
) -> None:
    maker = JobMaker()
    places = engine.engine.config.max_num_seqs * engine.engine.config.data_parallel_size
    jobs = KeptJobs(store, maker.make, places, on_change=observers.job_changed)
    service = Service(engine, settings, jobs, observers)
    maker.service = service
    try:
        await jobs.start()
        server = Server(
            uvicorn.Config(
                make_app(service),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                http=Connection,
                ws="none",
                timeout_graceful_shutdown=_CLOSE_S,
            ),
            service,
        )
        bound.listen(_BACKLOG)  # whoever reads the next line can connect
        log.warning("serving", address=address_of(bound), model=service.model_name)
        on_started(server)
        await server.serve([bound])
    finally:
        await jobs.aclose()
        service.close()
