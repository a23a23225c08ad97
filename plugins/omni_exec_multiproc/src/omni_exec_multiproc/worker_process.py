"""What runs in a worker process, from its first line to its last."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from typing import Any

from omni_core.errors import OmniError, RPCError, StartupError
from omni_core.worker.rank_loop import WorkerCall, WorkerReply, call_error, serve
from omni_exec_multiproc.channel import Channel, ChannelClosedError, Frame
from omni_exec_multiproc.messages import INTERRUPT, STARTED, Setup, open_call, open_value, seal, seal_reply
from omni_exec_multiproc.parent_death import die_with_parent

# How a worker ends whose driver is gone.
DRIVER_GONE = 3


def run_worker(work: socket.socket, control: socket.socket) -> None:
    """Load the model, then serve calls until the driver has no more. Does not return: it ends the process."""
    # Ctrl-C in a terminal reaches every process there; only the driver decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    status = 0
    try:
        calls = Channel(work)
        listener = _ControlThread(Channel(control))
        setup = _receive_setup(calls)
        worker = _build(setup, calls)
        if worker is None:
            status = 1
        else:
            listener.worker = worker
            serve(worker, _Transport(calls))
            worker.close()
    except ChannelClosedError:
        status = DRIVER_GONE
    except SystemExit as error:  # raised by what was called: the driver hears of it as of any other end
        status = error.code if isinstance(error.code, int) else 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # Without the interpreter's own clean-up: threads of libraries could hold it up.
        os._exit(status)


def run_spawned(work: int, control: int, parent: int) -> None:
    """`run_worker` in a new interpreter.

    Args:
        work: File descriptor of the channel for calls.
        control: File descriptor of the channel for what cannot wait.
        parent: Process id of the driver.
    """
    die_with_parent(parent)
    run_worker(socket.socket(fileno=work), socket.socket(fileno=control))


class _Transport:
    """Calls come over one channel, one after another."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def receive(self) -> WorkerCall | WorkerReply | None:
        try:
            frame: Frame = self._channel.recv()
        except ChannelClosedError:
            return None
        return open_call(frame)

    def reply(self, reply: WorkerReply) -> None:
        self._channel.send(seal_reply(reply))


class _ControlThread:
    """Answers while the worker computes: that the process lives, and that somebody wants a long step to end early.

    It also sees at once that the driver is gone, whatever the worker is doing.
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


def _receive_setup(channel: Channel) -> Setup:
    frame = channel.recv()
    try:
        setup: Setup = open_value(frame)
    except Exception as error:
        channel.send(seal(STARTED, (None, call_error("reading the configuration", error))))
        raise SystemExit(1) from error
    return setup


def _build(setup: Setup, channel: Channel) -> Any:
    """Return the worker, or None if it could not be made: then the driver was told why."""
    try:
        worker = _make_worker(setup)
    except Exception as error:
        reason: OmniError = call_error("make the worker", error)
        if type(reason) is RPCError:
            who = f"Worker {setup.rank} of replica {setup.replica}"
            reason = StartupError(f"{who} could not be made: {error!r}", worker_traceback=reason.worker_traceback)
        channel.send(seal(STARTED, (None, reason)))
        return None
    channel.send(seal(STARTED, (os.getpid(), None)))
    return worker


def _make_worker(setup: Setup) -> Any:
    _choose_accelerator(setup)
    from omni_core.log import configure_logging
    from omni_core.plugins import default_registry
    from omni_core.worker.worker import worker_class

    config = setup.config
    configure_logging(config.log_level, "json")  # the driver reads it and passes it on in the form that was asked for
    more: dict[str, Any] = {}
    if setup.world_size > 1:
        from omni_core.worker.rank_group import RankGroup

        more["group"] = RankGroup.connect(
            setup.rank, setup.world_size, setup.rendezvous, device=config.device, timeout_s=config.startup_timeout_s
        )
    return worker_class(config)(config, replica=setup.replica, rank=setup.rank, hooks=default_registry(), **more)


def _choose_accelerator(setup: Setup) -> None:
    """Show this process one accelerator of its own, before anything initialises CUDA."""
    if setup.num_local == 1 or setup.config.device not in ("auto", "cuda"):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        visible = ",".join(map(str, range(torch.cuda.device_count())))
    devices = [device for device in visible.split(",") if device]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[setup.local_index % len(devices)]
