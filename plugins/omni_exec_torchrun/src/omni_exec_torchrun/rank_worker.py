"""The driver's side of one rank."""

from __future__ import annotations

import contextlib
import os
import signal

from omni_core.replicas.worker import WorkerEvents
from omni_core.wire.arrival import Arrival
from omni_core.wire.channel import Channel
from omni_core.wire.process_end import describe_exit
from omni_core.wire.reactor import Reactor
from omni_core.wire.worker import WireWorker
from omni_exec_torchrun.options import TorchrunOptions

# Seconds to wait for the launcher's report of an exit code after the connection of a rank has ended.
_REPORT_WAIT_S = 0.3


class RankWorker(WireWorker):
    """Communicates with a rank that a launcher has started, on this or another node.

    Args:
        reactor: The reactor that watches the rank.
        arrival: Its connections.
        options: The options of the executor.
        events: Callbacks for what happens to it.
        replica: Index of its replica.
        rank: Its rank in the replica.
    """

    def __init__(
        self,
        reactor: Reactor,
        arrival: Arrival,
        options: TorchrunOptions,
        events: WorkerEvents,
        *,
        replica: int,
        rank: int,
    ) -> None:
        limit_s = options.send_timeout_s
        super().__init__(
            reactor,
            Channel(arrival.work, send_timeout_s=limit_s, shared_memory_bytes=0),
            Channel(arrival.control, send_timeout_s=limit_s, shared_memory_bytes=0),
            events,
            replica=replica,
            rank=rank,
            send_timeout_s=limit_s,
        )
        self.hello = arrival.hello
        self.is_local = arrival.is_local
        self.pid = arrival.hello.pid
        self.said = ""
        self._is_ending = False
        self._has_exited = False
        self._pidfd: int | None = None
        if self.is_local and hasattr(os, "pidfd_open"):
            try:
                self._pidfd = os.pidfd_open(self.pid)
            except OSError:
                self._has_exited = True

    @property
    def has_exited(self) -> bool:
        """Whether the process has exited. On another node, only the end of the connection is known."""
        return self._has_exited

    def listen(self) -> None:
        """Start to read from the rank."""
        super().listen()
        if self._pidfd is not None:
            self._loop.watch(self._pidfd, self._process_ended)

    def kill(self, with_signal: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process. On another node, close its connection, which ends it."""
        if self._pidfd is not None and not self._has_exited:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, with_signal)
        elif self._pidfd is None:
            self._control.shutdown()
            self._has_exited = True

    def last_output(self) -> str:
        """Return the last lines of output of the launch that this rank belongs to."""
        return self.said

    def note_exit(self, exit_code: int) -> None:
        """Handle the exit code that the launcher reports."""
        if self.is_alive:
            self.declare_dead(describe_exit(exit_code))

    def _process_ended(self) -> None:
        assert self._pidfd is not None
        self._loop.unwatch(self._pidfd)
        self._has_exited = True
        if self.is_alive:
            self._end_seen()
        else:
            self._close()
        self._events.on_heard()

    def _end_seen(self) -> None:
        """The connection has ended: wait a moment for the exit code from the launcher."""
        if self.is_alive and not self._is_ending:
            self._is_ending = True
            self._loop.call_later(_REPORT_WAIT_S, lambda: self.declare_dead("ended, or cannot be reached any more"))

    def _release(self) -> None:
        super()._release()
        if self._pidfd is not None:
            self._loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
