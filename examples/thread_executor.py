"""A back end on `omni_core.replicas`, without processes and sockets: each worker is a thread behind a queue.

    python examples/thread_executor.py FOLDER

`omni_core.replicas` replaces dead workers, runs their requests again, watches over steps and keeps the state of each
replica. A back end says what a worker, a replica and the loop are. This one is no executor for users: a thread that
hangs cannot be ended. The program ends a worker in the middle of a request, and saves the picture all the same.
"""

from __future__ import annotations

import argparse
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from omni_core import DiffusionEngine, OmniDiffusionRequest
from omni_core.calls import WorkerCall, answer, call_error
from omni_core.config import OmniDiffusionConfig
from omni_core.executor import RANK_OPTIONS
from omni_core.log import get_logger
from omni_core.own_threads import begin_own_thread
from omni_core.replicas.executor import ReplicaExecutor
from omni_core.replicas.loop import Loop
from omni_core.replicas.options import ReplicaOptions
from omni_core.replicas.replica import Replica, ReplicaEvents
from omni_core.replicas.timers import Timer, Timers
from omni_core.replicas.worker import Worker, WorkerEvents

log = get_logger(__name__)

_LATE_S = 1.0


class QueueLoop(Loop):
    """A thread that takes what it is to call from a queue."""

    def __init__(self, owner: object) -> None:
        self._soon: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._timers = Timers()
        self._late: list[Callable[[float], None]] = []
        self._thread = threading.Thread(target=self._run, args=(owner,), name="omni-queue-loop", daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    @property
    def is_running(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def call_soon(self, action: Callable[[], None]) -> None:
        """Call `action` in this thread."""
        self._soon.put(action)

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call `action` in this thread after so many seconds."""
        return self._timers.add(time.monotonic() + seconds, action)

    def on_late(self, listener: Callable[[float], None]) -> None:
        """Tell `listener` by how many seconds the thread was late."""
        self._late.append(listener)

    def stop(self) -> None:
        """End the thread."""
        self._soon.put(None)
        self._thread.join(10)

    def _run(self, owner: object) -> None:
        begin_own_thread("watches the workers", owner)
        while True:
            due = self._timers.first
            try:
                action = self._soon.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
            except queue.Empty:
                late = time.monotonic() - (due or 0.0)
                for listener in self._late if late > _LATE_S else ():
                    listener(late)
                if (action := self._timers.take_due(time.monotonic())) is not None:
                    self._guarded(action)
                continue
            if action is None:
                return
            self._guarded(action)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # the thread goes on: others wait for it
            log.exception("an action in the loop's thread raised")


class ThreadWorker(Worker):
    """A worker in a thread."""

    def __init__(
        self, loop: QueueLoop, events: WorkerEvents, config: OmniDiffusionConfig, *, replica: int, hooks: Any
    ) -> None:
        super().__init__(loop, events, replica=replica, rank=0)
        self._config = config
        self._hooks = hooks
        self._calls: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        self._made: Any = None
        self._thread = threading.Thread(target=self._run, name=f"omni-thread-worker-{replica}", daemon=True)

    @property
    def has_exited(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, which loads the pipeline."""
        self._thread.start()

    def kill(self, with_signal: signal.Signals = signal.SIGKILL) -> None:
        """Ask the thread to end; it cannot be made to."""
        self.finish()
        self._send_interrupt()

    def finish(self) -> None:
        """Let the thread end after the calls that it has."""
        self._calls.put(None)

    def _send(self, number: int, packed: Any, sent: list[int]) -> None:
        sent.append(1)
        self._calls.put((number, packed))

    def _send_ping(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon(self.heard)

    def _send_interrupt(self) -> None:
        if self._made is not None:
            self._made.interrupt()

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            what = f"ended by {type(error).__name__}"
            self._loop.call_soon(lambda: self.declare_dead(what))
        finally:
            made, self._made = self._made, None
            if made is not None:
                made.close()
            self._loop.call_soon(self._ended)

    def _serve(self) -> None:
        from omni_core.worker.worker import worker_class

        try:
            self._made = worker_class(self._config)(self._config, replica=self.replica, hooks=self._hooks)
        except Exception as raised:
            error = call_error("loading", raised)
            self._loop.call_soon(lambda: self.loaded(error))
            return
        self._loop.call_soon(lambda: self.loaded(None))
        while (item := self._calls.get()) is not None:
            number, (method, args, kwargs) = item
            reply = answer(self._made, WorkerCall(number, method, args, kwargs))
            self._loop.call_soon(lambda reply=reply: self.settle(reply.call_id, reply.value, reply.error))  # type: ignore[misc]
            del item, args, kwargs, reply

    def _ended(self) -> None:
        if self.is_alive:
            self.declare_dead("ended")
        self._close()
        self._events.on_heard()


class ThreadReplica(Replica):
    """A replica of one thread."""

    _loop: QueueLoop

    def start_workers(self) -> None:
        """Start the one worker."""
        self.drop_closed()
        worker = ThreadWorker(self._loop, self.worker_events, self._config, replica=self.index, hooks=self._hooks)
        self.workers = [worker]
        worker.start()


class ThreadExecutor(ReplicaExecutor[QueueLoop]):
    """Runs `data_parallel_size` replicas of one thread each."""

    supported_options: ClassVar[frozenset[str]] = ReplicaExecutor.supported_options - RANK_OPTIONS
    has_worker_processes: ClassVar[bool] = False

    def make_loop(self) -> QueueLoop:
        """Return the loop, which runs."""
        return QueueLoop(self)

    def make_replicas(self, loop: QueueLoop, events: ReplicaEvents) -> Sequence[Replica]:
        """Return the replicas, not started yet."""
        options = ReplicaOptions()
        return [
            ThreadReplica(loop, self.config, options, events, index=index, hooks=self.plugins)
            for index in range(self.config.data_parallel_size)
        ]


def end(_worker: Any) -> None:
    """End the worker that is asked to, as a fault would."""
    sys.exit(3)


def main(folder: Path) -> None:
    """Make a picture on a worker that ends half-way."""
    config = OmniDiffusionConfig(executor_class=ThreadExecutor, log_level="error")
    with DiffusionEngine(config) as engine:
        handle = engine.submit(OmniDiffusionRequest(prompt="a blue two", seed=1))
        next(event for event in handle.events() if event.kind == "step")
        engine.collective_rpc(end, non_block=True)
        output = handle.result().raise_for_error()
        folder.mkdir(parents=True, exist_ok=True)
        output.images[0].save(folder / "two.png")
        [worker] = engine.stats().workers
        print(f"run again {output.metrics.num_retries} time, on a worker that was replaced {worker.restarts} time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
