"""What a call to a worker process costs: `omni-exec-multiproc` against a bare Pipe, ZeroMQ and a plain memcpy.

    python benchmarks/rpc.py [--rounds 15] [--calls 200] [--only small,large,idle] [--no-executor]

Measures the round trip of a small call to one and to two workers, with idle cores and with all of them computing; how
fast tensors of 1, 16 and 256 MB come back; and the CPU time of driver and workers while nothing happens. All sides
alternate in one run, so that noise of the machine hits all. Each line has the median of the paired ratios with their
middle half. ZeroMQ is left out where pyzmq is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import select
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

MB = 1 << 20
SIZES = (MB, 16 * MB, 256 * MB)
# What is measured in each round of one size.
FETCHES = {MB: 40, 16 * MB: 8, 256 * MB: 2}
_START = multiprocessing.get_context("spawn")


class Peer(Protocol):
    """One way to reach worker processes. Another one to measure needs these, and a place in `open_peers`."""

    name: str

    def call(self) -> Any:
        """Make a small call to each worker, and return when all have replied."""

    def fetch(self, nbytes: int) -> Any:
        """Get a tensor of that many bytes from the first worker."""

    def pids(self) -> list[int]:
        """Return the process ids of the workers."""

    def close(self) -> None:
        """End the workers."""


def request(nbytes: int) -> dict[str, Any]:
    return {"method": "echo", "args": (nbytes,), "kwargs": None}


class Answers:
    """What a worker replies: nothing much, or a tensor that it has already."""

    def __init__(self) -> None:
        self._tensors: dict[int, Any] = {}

    def __call__(self, call: dict[str, Any]) -> Any:
        (nbytes,) = call["args"]
        if not nbytes:
            return (nbytes, None)
        import torch

        if nbytes not in self._tensors:
            self._tensors[nbytes] = torch.ones(nbytes // 4)
        return (self._tensors[nbytes], None)


def start(target: Callable[..., None], *args: Any) -> Any:
    process = _START.Process(target=target, args=args, daemon=True)
    process.start()
    return process


# --- multiprocessing.Pipe ----------------------------------------------------------------------------------------


def serve_pipe(connection: Connection) -> None:
    answers = Answers()
    with contextlib.suppress(EOFError):
        while True:
            call = connection.recv()
            reply = answers(call)
            if call["args"][0]:
                # As an array: torch's own pickling would send it through files of its own in /dev/shm.
                reply = (reply[0].numpy(), None)
            connection.send(reply)


class PipePeer:
    name = "Pipe"

    def __init__(self, workers: int) -> None:
        pairs = [_START.Pipe() for _ in range(workers)]
        self._ours: list[Any] = [ours for ours, _ in pairs]
        self._processes = [start(serve_pipe, theirs) for _, theirs in pairs]
        for _, theirs in pairs:
            theirs.close()

    def call(self) -> Any:
        for ours in self._ours:
            ours.send(request(0))
        return [ours.recv() for ours in self._ours]

    def fetch(self, nbytes: int) -> Any:
        self._ours[0].send(request(nbytes))
        return self._ours[0].recv()[0]

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def close(self) -> None:
        for ours, process in zip(self._ours, self._processes, strict=True):
            ours.close()
            process.join(10)


# --- ZeroMQ ------------------------------------------------------------------------------------------------------


def serve_zmq(address: str) -> None:
    import pickle

    import zmq

    answers, driver = Answers(), zmq.Context().socket(zmq.PAIR)
    driver.connect(address)
    while (data := driver.recv()) != b"":
        call = pickle.loads(data)
        value = answers(call)[0]
        head = (None, None) if call["args"][0] else (value, None)
        driver.send(pickle.dumps(head, protocol=5), zmq.SNDMORE if call["args"][0] else 0)
        if call["args"][0]:
            driver.send(value.numpy(), copy=False)


class ZmqPeer:
    name = "pyzmq"

    def __init__(self, workers: int) -> None:
        import zmq

        self._folder = tempfile.TemporaryDirectory()
        self._context = zmq.Context()
        self._sockets = []
        self._processes = []
        for index in range(workers):
            address = f"ipc://{self._folder.name}/{index}"
            peer = self._context.socket(zmq.PAIR)
            peer.bind(address)
            self._sockets.append(peer)
            self._processes.append(start(serve_zmq, address))

    def call(self) -> Any:
        import pickle

        for peer in self._sockets:
            peer.send(pickle.dumps(request(0), protocol=5))
        return [pickle.loads(peer.recv()) for peer in self._sockets]

    def fetch(self, nbytes: int) -> Any:
        import pickle

        self._sockets[0].send(pickle.dumps(request(nbytes), protocol=5))
        self._sockets[0].recv()
        return np.frombuffer(self._sockets[0].recv(copy=False).buffer, dtype=np.float32)

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def close(self) -> None:
        for peer, process in zip(self._sockets, self._processes, strict=True):
            peer.send(b"")
            process.join(10)
            peer.close()
        self._context.term()
        self._folder.cleanup()


# --- the channel by itself ---------------------------------------------------------------------------------------


def serve_channel(connection: socket.socket) -> None:
    from omni_core.serialization import dumps, loads
    from omni_core.wire.channel import Channel
    from omni_core.wire.frame import ChannelClosedError, Frame

    answers, channel = Answers(), Channel(connection)
    with contextlib.suppress(ChannelClosedError):
        while True:
            frame = channel.recv()
            channel.send(Frame(frame.number, *dumps(answers(loads(frame.data, frame.buffers)))))
            del frame


class DirectPeer:
    """The caller itself waits for the reply: the least that the channel can cost."""

    name = "channel, caller reads"

    def __init__(self, workers: int) -> None:
        from omni_core.wire.channel import Channel

        self._channels = []
        self._processes = []
        self._number = 0
        for _ in range(workers):
            ours, theirs = socket.socketpair()
            self._processes.append(start(serve_channel, theirs))
            theirs.close()
            self._channels.append(Channel(ours))

    def _send(self, index: int, nbytes: int) -> None:
        from omni_core.serialization import dumps
        from omni_core.wire.frame import Frame

        self._number += 1
        self._channels[index].send(Frame(self._number, *dumps(request(nbytes))))

    def _receive(self, index: int) -> Any:
        from omni_core.serialization import loads

        frame = self._channels[index].recv()
        return loads(frame.data, frame.buffers)[0]

    def call(self) -> Any:
        for index in range(len(self._channels)):
            self._send(index, 0)
        return [self._receive(index) for index in range(len(self._channels))]

    def fetch(self, nbytes: int) -> Any:
        self._send(0, nbytes)
        return self._receive(0)

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def close(self) -> None:
        for channel, process in zip(self._channels, self._processes, strict=True):
            channel.close()
            process.join(10)


class ThreadPeer(DirectPeer):
    """A thread polls all channels and settles futures, as the executor does."""

    name = "channel, poll thread"

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._pending: dict[tuple[int, int], Future[Any]] = {}
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _send(self, index: int, nbytes: int) -> None:
        self._pending[(index, self._number + 1)] = future = Future[Any]()
        super()._send(index, nbytes)
        self._futures.append(future)

    def call(self) -> Any:
        self._futures: list[Future[Any]] = []
        for index in range(len(self._channels)):
            self._send(index, 0)
        return [future.result() for future in self._futures]

    def fetch(self, nbytes: int) -> Any:
        self._futures = []
        self._send(0, nbytes)
        return self._futures.pop().result()

    def _run(self) -> None:
        from omni_core.serialization import loads

        poll = select.epoll()
        by_fd = {channel.fileno(): index for index, channel in enumerate(self._channels)}
        for fd in (*by_fd, self._wake_read):
            poll.register(fd, select.EPOLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd not in by_fd:
                    return
                for frame in self._channels[by_fd[fd]].drain():
                    value = loads(frame.data, frame.buffers)[0]
                    self._pending.pop((by_fd[fd], frame.number)).set_result(value)
                    del frame, value

    def close(self) -> None:
        os.write(self._wake_write, b"\0")
        self._thread.join(10)
        super().close()
        os.close(self._wake_read)
        os.close(self._wake_write)


# --- the executor ------------------------------------------------------------------------------------------------


def keep_and_return(worker: Any, nbytes: int) -> Any:
    import torch

    kept = vars(worker).setdefault("_benchmark", {})
    if nbytes not in kept:
        kept[nbytes] = torch.ones(nbytes // 4)
    return kept[nbytes]


class ExecutorPeer:
    """`collective_rpc` of an engine with `executor_class="multiproc"`."""

    name = "executor"

    def __init__(self, workers: int) -> None:
        from omni_core import DiffusionEngine, OmniDiffusionConfig

        config = OmniDiffusionConfig(executor_class="multiproc", data_parallel_size=workers, log_level="error")
        self._engine = DiffusionEngine(config)

    def call(self) -> Any:
        return self._engine.collective_rpc(id)

    def fetch(self, nbytes: int) -> Any:
        return self._engine.collective_rpc(keep_and_return, args=(nbytes,), unique_reply_rank=0)

    def pids(self) -> list[int]:
        return [stats.pid for stats in self._engine.stats().workers if stats.pid is not None]

    def close(self) -> None:
        self._engine.close()


# --- measuring ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_peers(workers: int, options: argparse.Namespace) -> Iterator[list[Peer]]:
    """Start one of each kind. The first is what the others are compared with."""
    kinds: list[Callable[[int], Peer]] = [PipePeer, DirectPeer, ThreadPeer]
    with contextlib.suppress(ModuleNotFoundError):
        import zmq  # noqa: F401

        kinds.insert(1, ZmqPeer)
    if options.executor:
        kinds.append(ExecutorPeer)
    with contextlib.ExitStack() as stack:
        peers = []
        for kind in kinds:
            peers.append(kind(workers))
            stack.callback(peers[-1].close)
        yield peers


def burn(begun: Any) -> None:
    begun.release()
    while True:
        pass


@contextlib.contextmanager
def all_cores_busy() -> Iterator[None]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    begun = _START.Semaphore(0)
    processes = [start(burn, begun) for _ in range(cores)]
    try:
        for _ in processes:
            begun.acquire()
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def timed(action: Callable[[], Any], times: int) -> list[float]:
    """Return the seconds of each run. What a run returns is let go of after its time was taken."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        result = action()
        seconds.append(time.perf_counter() - begin)
        del result
    return seconds


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def measure_small(title: str, peers: list[Peer], options: argparse.Namespace) -> None:
    rounds: list[list[list[float]]] = [[] for _ in peers]
    for peer in peers:
        timed(peer.call, 20)
    for number in range(options.rounds):
        order = list(enumerate(peers))
        for index, peer in order if number % 2 else reversed(order):
            rounds[index].append(timed(peer.call, options.calls))
    base = [statistics.median(seconds) for seconds in rounds[0]]
    base_means = [statistics.fmean(seconds) for seconds in rounds[0]]
    print(f"\nsmall call, {title}", flush=True)
    for peer, runs in zip(peers, rounds, strict=True):
        medians = [statistics.median(seconds) for seconds in runs]
        means = [statistics.fmean(seconds) for seconds in runs]
        ratio = quartiles([one / other for one, other in zip(medians, base, strict=True)])
        mean_ratio = quartiles([one / other for one, other in zip(means, base_means, strict=True)])
        print(
            f"  {peer.name:22} median {statistics.median(medians) * 1e6:7.1f} µs = {ratio[1]:5.2f} x Pipe "
            f"({ratio[0]:.2f} to {ratio[2]:.2f});  mean {statistics.median(means) * 1e6:7.1f} µs = "
            f"{mean_ratio[1]:5.2f} x Pipe",
            flush=True,
        )


def measure_large(peers: list[Peer], options: argparse.Namespace) -> None:
    for nbytes in SIZES:
        source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
        sides: list[tuple[str, Callable[[], Any]]] = [("memcpy", lambda: np.copyto(target, source))]  # noqa: B023
        sides += [(peer.name, lambda peer=peer: peer.fetch(nbytes)) for peer in peers]  # type: ignore[misc]  # noqa: B023
        seconds: list[list[float]] = [[] for _ in sides]
        for _, fetch in sides:
            timed(fetch, 2)
        for number in range(options.rounds):
            order = list(enumerate(sides))
            for index, (_, fetch) in order if number % 2 else reversed(order):
                seconds[index].append(statistics.median(timed(fetch, FETCHES[nbytes])))
        print(f"\nreply of {nbytes // MB} MB", flush=True)
        for (name, _), times in zip(sides, seconds, strict=True):
            low, middle, high = quartiles([copy / one for copy, one in zip(seconds[0], times, strict=True)])
            speed = nbytes / statistics.median(times) / 1e9
            print(f"  {name:22} {speed:6.2f} GB/s = {middle:5.2f} x memcpy ({low:.2f} to {high:.2f})", flush=True)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_idle(peer: Peer, seconds: float) -> None:
    peer.call()
    pids = [os.getpid(), *peer.pids()]
    before = [cpu_seconds(pid) for pid in pids]
    time.sleep(seconds)
    used = sum(cpu_seconds(pid) - start for pid, start in zip(pids, before, strict=True))
    print(f"  {peer.name:22} {used / seconds * 100:5.2f} % of a core", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=200, help="small calls of each side in a round")
    parser.add_argument("--only", default="small,large,idle", help="which parts to run")
    parser.add_argument("--no-executor", dest="executor", action="store_false", help="the channel alone")
    options = parser.parse_args()
    parts = options.only.split(",")
    for workers in (1, 2):
        if "small" in parts or (workers == 1 and parts):
            with open_peers(workers, options) as peers:
                if "small" in parts:
                    measure_small(f"{workers} worker(s), idle cores", peers, options)
                    with all_cores_busy():
                        measure_small(f"{workers} worker(s), all cores computing", peers, options)
                if workers == 1 and "large" in parts:
                    measure_large(peers, options)
    if "idle" in parts:
        print("\nidle for 10 s, driver and 2 workers")
        for kind in (ThreadPeer, ExecutorPeer) if options.executor else (ThreadPeer,):
            peer: Peer = kind(2)
            measure_idle(peer, 10)
            peer.close()


if __name__ == "__main__":
    main()
