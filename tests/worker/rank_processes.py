"""Real processes that are the ranks of one replica, for tests."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import cloudpickle

START_S = 120.0


class RankProcesses:
    """Processes, one for each rank, that run what they are sent: all the same function, with their `RankGroup`.

    Args:
        world_size: Number of ranks.
        timeout_s: That of their group.
        device: Where they compute: `"cpu"`, or `"cuda"` for a GPU each.
        keys: By which each rank knows the others.
    """

    def __init__(
        self,
        world_size: int = 2,
        timeout_s: float = 60.0,
        device: str = "cpu",
        keys: Sequence[bytes] = (b"the key of all",) * 4,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="omni-ranks-")
        # Forked from a process that has imported torch and diffusers: each rank would take seconds to do so.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["omni_core.worker.parallel.rank_group", "omni_core.worker.worker", "diffusers"])
        self.processes: list[Any] = []
        self._connections: list[Connection] = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            store = f"file://{Path(self._folder.name) / 'store'}"
            place = f"cuda:{rank}" if device == "cuda" else device
            arguments = (theirs, rank, world_size, store, timeout_s, place, keys[rank])
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self._connections.append(ours)
        assert self.collect(START_S) == ["connected"] * world_size

    @property
    def folder(self) -> str:
        """A folder that lives as long as the processes."""
        return self._folder.name

    def __enter__(self) -> RankProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 90.0) -> list[Any]:
        """Run `function(group, *args)` on all ranks, and return what each returned."""
        self.send(function, *args)
        return self.collect(timeout)

    def send(self, function: Callable[..., Any], *args: Any) -> None:
        """Begin to run `function(group, *args)` on all ranks."""
        # By value: the name that pytest gives a test module means nothing to another process.
        module = sys.modules[function.__module__]
        cloudpickle.register_pickle_by_value(module)
        try:
            data = cloudpickle.dumps((function, args))
        finally:
            cloudpickle.unregister_pickle_by_value(module)
        for connection in self._connections:
            connection.send_bytes(data)

    def collect(self, timeout: float = 90.0) -> list[Any]:
        """Return what each rank returned."""
        return [self.result(rank, timeout) for rank in range(len(self._connections))]

    def result(self, rank: int, timeout: float = 90.0) -> Any:
        """Return what one rank returned."""
        connection = self._connections[rank]
        assert connection.poll(timeout), f"rank {rank} does not answer"
        value, error = cloudpickle.loads(connection.recv_bytes())
        assert error is None, f"rank {rank} raised:\n{error}"
        return value

    def kill(self, rank: int) -> None:
        """End one rank by SIGKILL."""
        os.kill(self.processes[rank].pid, signal.SIGKILL)
        self.processes[rank].join(10)

    def close(self) -> None:
        """End all ranks."""
        for connection in self._connections:
            connection.close()
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join(10)
        self._folder.cleanup()


def _serve(
    connection: Connection, rank: int, world_size: int, rendezvous: str, timeout_s: float, device: str, key: bytes
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    # A process that multiprocessing has spawned makes semaphores with names (tqdm has one), and one that is killed
    # leaves them in /dev/shm, where tests that run beside this one look for what is left. Those of `fork` have none.
    multiprocessing.set_start_method("fork", force=True)
    import torch

    from omni_core.worker.parallel.rank_group import RankGroup

    torch.set_num_threads(1)
    if device != "cpu":
        torch.cuda.set_device(device)
    group = RankGroup.connect(rank, world_size, rendezvous, timeout_s=timeout_s, device=device, key=key)
    _reply(connection, "connected", None)
    while True:
        try:
            function, args = cloudpickle.loads(connection.recv_bytes())
        except EOFError:
            break
        try:
            value, error = function(group, *args), None
        except Exception as raised:
            value, error = None, "".join(traceback.format_exception(raised))
        _reply(connection, value, error)
    group.close()


def _reply(connection: Connection, value: Any, error: str | None) -> None:
    connection.send_bytes(cloudpickle.dumps((value, error)))
