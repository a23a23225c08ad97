"""A process that has imported torch and diffusers and does nothing but fork workers: the second starts in no time.

It never computes, so it has no threads and no CUDA context, and forking it is safe. It ends with its driver, and takes
its workers along.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
from pathlib import Path

from omni_core.remote.channel import Channel
from omni_core.remote.process_end import die_with_parent
from omni_core.remote.worker_main import run_worker
from omni_exec_multiproc.worker_process import make_worker


def main(fd: int, model: str | None) -> None:
    """Serve one driver.

    Args:
        fd: A SOCK_SEQPACKET socket. Each request is any text with three file descriptors: the worker's two channels
            and its output. The answer is `{"pid": …}` with a pidfd. The end of a worker comes as
            `{"pid": …, "exit_code": …}`, negative for a signal.
        model: What the workers will load: a folder, an import path, a hub id, or None for the small model.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    driver = socket.socket(fileno=fd)
    # What cannot be imported is left out: the worker will say why.
    for module in ("omni_core.worker.worker", "omni_core.plugins", "diffusers"):
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    with contextlib.suppress(Exception):
        _import_classes(model)
    gc.collect()
    gc.freeze()  # or the first collection of every worker would copy all pages
    ended, wake = socket.socketpair()
    ended.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        readable, _, _ = select.select([driver, ended], [], [])
        if ended in readable:
            with contextlib.suppress(BlockingIOError):
                ended.recv(4096)
            _report_ends(driver)
        if driver in readable:
            message, fds, _, _ = socket.recv_fds(driver, 64, 3)
            if not message:
                os._exit(0)  # the driver is gone; the kernel kills the workers
            _fork(driver, fds, [driver, ended, wake])


def _import_classes(model: str | None) -> None:
    """Import the classes of the pipeline in a folder: by far the most of what loading it takes."""
    from omni_core.worker.loader import SMALL_MODEL

    folder = SMALL_MODEL if model is None else Path(model)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    getattr(importlib.import_module("diffusers"), index["_class_name"])
    for value in index.values():
        if isinstance(value, list) and len(value) == 2 and value[0] in ("diffusers", "transformers"):
            getattr(importlib.import_module(value[0]), value[1])


def _fork(driver: socket.socket, fds: list[int], ours: list[socket.socket]) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for one in ours:
                one.close()
            gc.unfreeze()
            random.seed()
            work, control, output = fds
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            run_worker(Channel(socket.socket(fileno=work)), Channel(socket.socket(fileno=control)), make_worker)
        finally:
            os._exit(1)
    for fd in fds:
        os.close(fd)
    pidfd = os.pidfd_open(pid)
    socket.send_fds(driver, [json.dumps({"pid": pid}).encode()], [pidfd])
    os.close(pidfd)


def _report_ends(driver: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        driver.send(json.dumps({"pid": pid, "exit_code": os.waitstatus_to_exitcode(status)}).encode())
