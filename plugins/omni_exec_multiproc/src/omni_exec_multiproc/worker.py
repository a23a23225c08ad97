"""The driver's side of one worker process of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

from omni_core.forking.starter import Started, Starter
from omni_core.replicas.worker import WorkerEvents
from omni_core.wire.channel import Channel
from omni_core.wire.output import WorkerOutput
from omni_core.wire.process_end import describe_exit
from omni_core.wire.reactor import Reactor
from omni_core.wire.worker import WireWorker
from omni_exec_multiproc.options import MultiprocOptions
from omni_exec_multiproc.worker_process import MultiprocWorkerSetup

# Seconds to wait for the exit code of a dead worker, which is only used in the message: it says what killed it. The
# process that forks workers tells it, which takes longer where all cores compute.
_EXIT_CODE_WAIT_S = 0.5


class ProcessWorker(WireWorker):
    """Starts one worker process, connected by socket pairs, and watches it.

    Args:
        reactor: The reactor that watches the process.
        starter: Starts the process.
        options: The options of the executor.
        events: Callbacks for what happens to it, in the reactor's thread.
        replica: Index of its replica.
        rank: Its rank in the replica.
    """

    def __init__(
        self,
        reactor: Reactor,
        starter: Starter,
        options: MultiprocOptions,
        events: WorkerEvents,
        *,
        replica: int,
        rank: int,
    ) -> None:
        with contextlib.ExitStack() as stack:
            work, theirs_work = _channel(options, stack)
            control, theirs_control = _channel(options, stack)
            self._theirs = [theirs_work, theirs_control]
            self._output = WorkerOutput(reactor, {"replica": replica, "rank": rank})
            stack.pop_all()
        super().__init__(
            reactor, work, control, events, replica=replica, rank=rank, send_timeout_s=options.send_timeout_s
        )
        self._starter = starter
        self._pidfd: int | None = None
        self._exit_code: int | None = None
        self._is_ending = False

    @property
    def has_exited(self) -> bool:
        """Whether the process has exited or was never started."""
        return self.pid is None or self._exit_code is not None

    def start(self, worker_setup: MultiprocWorkerSetup) -> None:
        """Start the process. In the reactor's thread."""
        try:
            self._starter.start([file.fileno() for file in self._theirs], self._output.write_fd, self._started)
        finally:
            self._close_theirs()
            self._output.close_write_end()
        if self.is_alive:
            self.listen()
            self.set_up(worker_setup)

    def kill(self, with_signal: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process, if it runs."""
        if self.pid is None or self._exit_code is not None:
            return
        with contextlib.suppress(ProcessLookupError, OSError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, with_signal)
            else:
                os.kill(self.pid, with_signal)

    def last_output(self) -> str:
        """Return the last lines of output of the process."""
        return self._output.tail()

    def note_exit(self, exit_code: int) -> None:
        """Handle the exit of the process. In the reactor's thread."""
        self._exit_code = exit_code
        if self.is_alive:
            self._end_seen()
        else:
            self._close()

    def _close_theirs(self) -> None:
        while self._theirs:
            self._theirs.pop().close()

    def _release(self) -> None:
        super()._release()
        self._close_theirs()  # if it was never started
        if self._pidfd is not None:
            self._loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._output.close()

    def _started(self, started: Started | OSError) -> None:
        if isinstance(started, OSError):
            self.declare_dead(f"could not be started: {started}")
            return
        self.pid, self._pidfd = started.pid, started.pidfd
        if not self.is_alive:
            self.kill()
        if self._pidfd is not None:
            self._loop.watch(self._pidfd, self._process_ended)

    def _process_ended(self) -> None:
        assert self._pidfd is not None
        self._loop.unwatch(self._pidfd)
        self._starter.poll()
        self._end_seen()

    def _end_seen(self) -> None:
        """The process ends: wait a moment for its exit code, which the starter reports."""
        if not self.is_alive:
            return
        if self._exit_code is not None:
            self.declare_dead(describe_exit(self._exit_code))
        elif not self._is_ending:
            self._is_ending = True
            self._loop.call_later(_EXIT_CODE_WAIT_S, lambda: self.declare_dead("ended"))


def _channel(options: MultiprocOptions, stack: contextlib.ExitStack) -> tuple[Channel, socket.socket]:
    """Return this end and the worker's socket; the stack closes both."""
    ours, theirs = socket.socketpair()
    stack.enter_context(theirs)
    limit = options.shared_memory_bytes
    channel = Channel(ours, send_timeout_s=options.send_timeout_s, shared_memory_bytes=limit)
    stack.callback(channel.close)
    return channel, theirs
