"""The main function of a worker process, from its first message to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from omni_core.calls import WorkerCall, WorkerReply, call_error, serve
from omni_core.engine_place import loading_in_worker_process
from omni_core.errors import OmniError, RPCError, StartupError
from omni_core.wire.channel import Channel
from omni_core.wire.frame import ChannelClosedError, Frame
from omni_core.wire.messages import INTERRUPT, STARTED, open_call, open_value, seal, seal_reply
from omni_core.wire.sealed import StepOpener
from omni_core.wire.worker_setup import WorkerSetup

# Exit code of a worker whose driver is gone.
DRIVER_GONE = 3


def run_worker(work: Channel, control: Channel, make_worker: Callable[[Any], Any]) -> None:
    """Load the model, then serve calls until the driver closes the connection. Does not return: it ends the process.

    Args:
        work: The connection for calls.
        control: The connection for urgent messages.
        make_worker: Makes the worker from the first message.
    """
    # Ctrl-C in a terminal reaches all its processes; the driver decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    status = 0
    try:
        with loading_in_worker_process():
            listener = _ControlThread(control)
            worker_setup = _receive_worker_setup(work)
            worker = _build(make_worker, worker_setup, work)
        if worker is None:
            status = 1
        else:
            listener.worker = worker
            serve(worker, _Transport(work))
            worker.close()
    except ChannelClosedError:
        status = DRIVER_GONE
    except SystemExit as error:  # raised by a call: the driver sees the exit code
        status = error.code if isinstance(error.code, int) else 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # Without the interpreter's clean-up, which threads of libraries could block.
        os._exit(status)


class _Transport:
    """The transport of `serve`: receives calls and sends replies over one channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._opener = StepOpener()

    def receive(self) -> WorkerCall | WorkerReply | None:
        try:
            self._channel.flush_releases()  # of the previous call: the next one may come much later
            frame: Frame = self._channel.recv()
        except ChannelClosedError:
            return None
        call = open_call(frame)
        return self._opener.open(call) if isinstance(call, WorkerCall) else call

    def reply(self, reply: WorkerReply) -> None:
        self._channel.send(seal_reply(self._opener.complete(reply)))


class _ControlThread:
    """Handles urgent messages while the worker computes: replies to pings, and interrupts a long step.

    It also ends the process as soon as the driver is gone.
    """

    def __init__(self, channel: Channel) -> None:
        self.worker: Any = None
        self._channel = channel
        threading.Thread(target=self._run, name="omni-worker-control", daemon=True).start()

    def _run(self) -> None:
        try:
            while True:
                frame = self._channel.recv()
                if frame.number != INTERRUPT:
                    self._channel.send(frame)
                elif self.worker is not None:
                    self.worker.interrupt()
        except ChannelClosedError:
            os._exit(DRIVER_GONE)


def _receive_worker_setup(channel: Channel) -> WorkerSetup:
    frame = channel.recv()
    try:
        worker_setup: WorkerSetup = open_value(frame)
        return worker_setup
    except Exception as error:
        channel.send(seal(STARTED, (None, call_error("reading the configuration", error))))
        raise SystemExit(1) from error


def _build(make_worker: Callable[[Any], Any], worker_setup: WorkerSetup, channel: Channel) -> Any:
    """Return the worker; None if it could not be made. The driver gets the result or the error."""
    try:
        worker = make_worker(worker_setup)
    except Exception as error:
        reason: OmniError = call_error("make the worker", error)
        if type(reason) is RPCError:
            who = f"Worker {worker_setup.rank} of replica {worker_setup.replica}"
            reason = StartupError(f"{who} could not be made: {error!r}", worker_traceback=reason.worker_traceback)
        channel.send(seal(STARTED, (None, reason)))
        return None
    channel.send(seal(STARTED, (os.getpid(), None)))
    return worker
