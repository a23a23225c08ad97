"""A loop with a clock of its own, and workers that do what a test says: the life cycle of replicas in no time."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from omni_core.config import OmniDiffusionConfig
from omni_core.errors import OmniError, RPCError, StartupError
from omni_core.replicas.loop import Loop
from omni_core.replicas.options import ReplicaOptions
from omni_core.replicas.replica import Replica, ReplicaEvents
from omni_core.replicas.timers import Timer, Timers
from omni_core.replicas.worker import Worker, WorkerEvents


class FakeLoop(Loop):
    """Runs what is due when a test says so; the test is its thread."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.late: list[Callable[[float], None]] = []
        self._soon: list[Callable[[], None]] = []
        self._timers = Timers()

    @property
    def is_current(self) -> bool:
        return True

    @property
    def is_running(self) -> bool:
        return True

    def time(self) -> float:
        return self.now

    def call_soon(self, action: Callable[[], None]) -> None:
        self._soon.append(action)

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        return self._timers.add(self.now + seconds, action)

    def on_late(self, listener: Callable[[float], None]) -> None:
        self.late.append(listener)

    def stop(self) -> None:
        pass

    def run(self) -> None:
        """Run what is to be called soon, and what that brings."""
        while self._soon:
            self._soon.pop(0)()

    def advance(self, seconds: float) -> None:
        """Let time pass: what is due is called at its own time."""
        end = self.now + seconds
        self.run()
        while (first := self._timers.first) is not None and first <= end:
            self.now = max(self.now, first)
            action = self._timers.take_due(self.now)
            assert action is not None
            action()
            self.run()
        self.now = end

    def stand_still(self, seconds: float) -> None:
        """Let time pass in which nothing runs, as while the process is stopped."""
        self.now += seconds
        self._timers.put_off(seconds)
        for listener in self.late:
            listener(seconds)
        self.run()


class FakeWorker(Worker):
    """A worker without a process.

    Attributes:
        calls: Numbers and names of the calls that it has got and not answered.
        pings, interrupts: How often it was asked.
        answers_pings: Whether it gives signs of life.
        dies_when_killed: Whether a signal ends it at once.
        log: What happened to it, in order, with the other workers of its replica.
    """

    def __init__(self, loop: FakeLoop, events: WorkerEvents, log: list[str], *, replica: int, rank: int) -> None:
        super().__init__(loop, events, replica=replica, rank=rank)
        self.calls: dict[int, Any] = {}
        self.pings = self.interrupts = 0
        self.answers_pings = True
        self.dies_when_killed = True
        self.was_asked_to_finish = False
        self.log = log
        self._has_exited = False

    @property
    def has_exited(self) -> bool:
        return self._has_exited

    def kill(self, with_signal: signal.Signals = signal.SIGKILL) -> None:
        self.log.append(f"rank {self.rank} killed")
        if self.dies_when_killed:
            self._has_exited = True

    def finish(self) -> None:
        self.was_asked_to_finish = True

    def _send(self, number: int, packed: Any, sent: list[int]) -> None:
        self.calls[number] = packed[0]
        sent.append(1)

    def _send_ping(self) -> None:
        self.pings += 1
        if self.answers_pings:
            self._loop.call_soon(self._pong)

    def _pong(self) -> None:
        if self.is_alive:
            self.heard()

    def _send_interrupt(self) -> None:
        self.interrupts += 1

    # What a test lets happen.

    def ends(self, what: str = "was killed by SIGKILL") -> None:
        """End its process."""
        self._has_exited = True
        if self.is_alive:
            self.declare_dead(what)
        else:
            self._close()

    def answer(self, value: Any = None) -> None:
        """Answer the oldest call."""
        self.settle(self._next(), value, None)

    def raises(self, text: str = "oh") -> None:
        """Answer the oldest call with an error."""
        self.settle(self._next(), None, RPCError(text))

    def _next(self) -> int:
        number = min(self.calls)
        del self.calls[number]
        return number


class FakeReplica(Replica):
    """A replica of fake workers.

    Attributes:
        starts: How often workers were started.
        cannot_start: What starting them raises.
        log: What happened to them.
    """

    def __init__(self, loop: FakeLoop, ranks: int = 1, *, options: ReplicaOptions | None = None, **config: Any) -> None:
        self.sleep_level = 0
        self.changes = 0
        events = ReplicaEvents(self._note_change, lambda: None, lambda: self.sleep_level)
        super().__init__(
            loop,
            OmniDiffusionConfig(**{"step_timeout_s": None, "cfg_parallel_size": ranks, **config}),
            options or ReplicaOptions(),
            events,
            index=0,
            hooks=None,
        )
        self.loop = loop
        self.starts = 0
        self.cannot_start: OSError | StartupError | None = None
        self.dies_when_killed = True
        self.log: list[str] = []
        self.made: list[FakeWorker] = []

    def start_workers(self) -> None:
        self.starts += 1
        if self.cannot_start is not None:
            raise self.cannot_start
        workers = [
            FakeWorker(self.loop, self.worker_events, self.log, replica=0, rank=rank) for rank in range(self.world_size)
        ]
        for worker in workers:
            worker.dies_when_killed = self.dies_when_killed
        self.made += workers
        self.workers = [*workers]

    def rank(self, number: int = 0) -> FakeWorker:
        """Return one of its workers."""
        worker = self.workers[number]
        assert isinstance(worker, FakeWorker)
        return worker

    def load(self, error: OmniError | None = None) -> None:
        """Let all workers load their pipeline, or fail to."""
        for worker in list(self.workers):
            worker.loaded(error)

    def _note_change(self) -> None:
        self.changes += 1
