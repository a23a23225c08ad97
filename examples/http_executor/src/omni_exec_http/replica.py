"""The worker of one replica, kept running: a thread starts it, watches it, and starts another when it was lost."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from omni_core import OmniDiffusionConfig, WorkerStats
from omni_core.errors import ExecutorError, OmniError, StartupError, WorkerDiedError
from omni_core.hookspecs import Hooks
from omni_exec_http.client import Exchange, wait_readable
from omni_exec_http.link import Link
from omni_exec_http.opening import open_link
from omni_exec_http.options import HttpOptions

FIRST_PAUSE_S = 0.25
TIME_TO_TELL_S = 2.0


@dataclass(frozen=True, slots=True)
class ReplicaEvents:
    """What a replica tells its executor, and asks it.

    Attributes:
        on_change: Told when `link` or `fault` has changed.
        sleep_level: Tells at which level workers are to sleep; 0 is awake.
        hooks: Plugins to tell of deaths and restarts.
    """

    on_change: Callable[[], None]
    sleep_level: Callable[[], int]
    hooks: Hooks | None


class Replica:
    """Owns one worker after the other, and the thread that cares for them.

    Attributes:
        index: Its index.
        started: Done when the first worker is ready, or could not be started.
        link: To the worker that takes calls; None while there is none.
        fault: Why there will be none soon.
        restarts: Times that the worker was replaced.
    """

    def __init__(self, index: int, config: OmniDiffusionConfig, options: HttpOptions, events: ReplicaEvents) -> None:
        self.index = index
        self.started: Future[None] = Future()
        self.link: Link | None = None
        self.fault: OmniError | None = None
        self.restarts = 0
        self._config = config
        self._options = options
        self._events = events
        self._failures = 0
        self._closing = threading.Event()
        self._interrupt = threading.Event()
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._keeper = threading.Thread(target=self._keep, name=f"http-replica-{index}", daemon=True)
        self._keeper.start()

    def need_link(self) -> Link:
        """Return the link to the worker.

        Raises:
            ExecutorError: There is none: it is being replaced, or the executor was shut down.
        """
        if (link := self.link) is not None:
            return link
        if self._closing.is_set():
            raise ExecutorError("The executor was shut down.")
        why = f" {self.fault.message}" if self.fault is not None else ""
        raise WorkerDiedError(
            f"The worker of replica {self.index} is gone and is being replaced; try again later.{why}",
            replica=self.index,
            rank=0,
        )

    def interrupt(self) -> None:
        """Let a running step return early. Returns at once."""
        self._interrupt.set()
        self._wake()

    def stats(self) -> WorkerStats:
        """Return what is known about the worker."""
        link, now = self.link, time.monotonic()
        if link is None:
            state = "failed" if self.fault else "restarting" if self.started.done() else "starting"
            return WorkerStats(self.index, 0, None, state, restarts=self.restarts)  # type: ignore[arg-type]
        return WorkerStats(
            self.index,
            0,
            link.pid,
            "busy" if link.num_in_flight else "idle",
            uptime_s=now - link.ready_at,
            restarts=self.restarts,
            last_heartbeat_s=now - link.heard_at,
        )

    def begin_closing(self) -> None:
        """Tell callers, and let the worker end."""
        self._closing.set()
        self._wake()

    def close(self) -> None:
        """Wait until the worker has ended, and let go of everything. After `begin_closing`."""
        self._keeper.join()
        self._woken.close()
        self._waker.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is full, so the thread wakes up anyway; or it is closed
            self._waker.send(b"!")

    def _keep(self) -> None:
        try:
            link: Link | None = self._open()
        except BaseException as error:
            self.started.set_exception(error)
            return
        self.started.set_result(None)
        while link is not None:
            self._watch(link)
            self._let_go(link)
            link = self._replace()

    def _open(self) -> Link:
        self.link = link = open_link(
            self._config,
            self._options,
            replica=self.index,
            sleep_level=self._events.sleep_level(),
            give_up=self._woken,
            is_closing=self._closing.is_set,
            on_lost=self._wake,
        )
        return link

    def _watch(self, link: Link) -> None:
        """Return when the worker is lost, or nobody wants it any more."""
        while not self._closing.is_set() and link.lost is None:
            silence = link.heard_at + self._options.heartbeat_s - time.monotonic()
            if silence <= 0:
                if link.health(self._options.heartbeat_timeout_s) is None:
                    link.lose(f"gave no sign of life in heartbeat_timeout_s = {self._options.heartbeat_timeout_s:g} s")
                continue
            files: list[Exchange | socket.socket] = [link.lifeline, self._woken]
            ready = wait_readable(files, silence)
            if link.lifeline in ready:
                link.lose("has hung up", is_gone=True)
            if self._woken in ready:
                self._woken.recv(4096)
            if self._interrupt.is_set():
                self._interrupt.clear()
                link.interrupt()

    def _let_go(self, link: Link) -> None:
        """Tell callers first, then see to it that the process ends."""
        self.link = None  # before anybody is told, so that nothing is sent there again
        if self._closing.is_set():
            link.bury(lambda: ExecutorError("The executor was shut down during the call."))
            if link.process is not None:
                link.process.kill(self._options.end_timeout_s)
            return
        end = None
        if link.process is not None and link.is_gone:
            end = link.process.end_of(TIME_TO_TELL_S)
        reason = end or link.lost or "was lost"
        said = f"The worker of replica {self.index} (process {link.pid}) {reason}."
        link.bury(lambda: WorkerDiedError(said, replica=self.index, rank=0))
        if link.process is not None:
            link.process.kill()
        self._failures = 0 if link.was_useful else self._failures + 1
        self._set_fault(WorkerDiedError(said, replica=self.index, rank=0))
        if self._events.hooks is not None:
            self._events.hooks.notify("omni_worker_died", replica=self.index, rank=0, reason=reason)
        self._events.on_change()

    def _replace(self) -> Link | None:
        while not self._closing.is_set():
            pause = min(FIRST_PAUSE_S * 2 ** (self._failures - 1), self._options.max_backoff_s) if self._failures else 0
            if self._closing.wait(pause):
                break
            try:
                link = self._open()
            except Exception as error:
                self._failures += 1
                self._set_fault(error)
                self._events.on_change()
                continue
            self.fault = None
            self.restarts += 1
            if self._events.hooks is not None:
                self._events.hooks.notify("omni_worker_restarted", replica=self.index, rank=0)
            self._events.on_change()
            return link
        return None

    def _set_fault(self, error: Exception) -> None:
        if self._failures < self._options.max_failures:
            return
        known = error if isinstance(error, OmniError) else StartupError(f"{type(error).__name__}: {error}")
        self.fault = known
