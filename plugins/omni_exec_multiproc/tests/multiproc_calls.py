"""What tests call in workers: importable there, because workers have the driver's sys.path."""

from __future__ import annotations

import logging
import os
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import torch


def pid(worker: Any) -> int:
    return os.getpid()


def environment(worker: Any) -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "argv": sys.argv,
        "stdin": str(Path("/proc/self/fd/0").readlink()),
        "session": os.getsid(0),
        "main": getattr(sys.modules["__main__"], "__file__", None),
    }


def say(worker: Any) -> None:
    sys.stdout.write("a plain line\n")
    sys.stdout.flush()
    logging.getLogger("omni_core.test").warning("a log line")
    from omni_core.log import get_logger

    get_logger("omni_core.test").warning("something happened", number=7)


def bfloat16(worker: Any) -> Any:
    return {"tensor": torch.full((100, 100), 1.5, dtype=torch.bfloat16), "nested": [torch.zeros(2, 3)]}


def megabytes(worker: Any, count: int, fill: int = 0) -> torch.Tensor:
    return torch.full((count << 20,), fill, dtype=torch.uint8)


def give_back(worker: Any, value: Any) -> Any:
    return value


def wait_at_barrier(worker: Any, folder: str, seconds: float) -> str:
    (Path(folder) / "here").touch()
    threading.Event().wait(seconds)
    return "late"


def leave(worker: Any, code: int) -> None:
    os._exit(code)


def leave_politely(worker: Any) -> None:
    sys.exit(5)


def fill_a_step(worker: Any) -> None:
    """Let the next step raise outside of the pipeline, as a broken device does."""

    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered (pretended)")

    worker._runner.execute_step = broken


def hang_in_steps(worker: Any) -> None:
    def hang(*_: Any) -> None:
        threading.Event().wait(120)

    worker._runner.execute_step = hang


def meet_the_others(worker: Any, absent: int) -> None:
    if worker.rank == absent:
        raise ValueError(f"rank {absent} does not come")
    torch.distributed.barrier()


def limit_memory(worker: Any, more_bytes: int) -> None:
    """Let this process take that much more memory than it has, and no more. -1 lifts the limit."""
    has_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = resource.RLIM_INFINITY if more_bytes < 0 else has_bytes + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def sleep_and_give_back(worker: Any, seconds: float, value: Any) -> Any:
    threading.Event().wait(seconds)
    return value


def long_on_replica(worker: Any, replica: int, size: int) -> bytes:
    return b"x" * (size if worker.replica == replica else 1)


def fork_and_die(worker: Any) -> None:
    """Die, and leave a child that holds this worker's sockets open for a while."""
    if os.fork() == 0:
        threading.Event().wait(20)
        os._exit(0)
    os._exit(9)


def size_of(worker: Any, value: Any) -> int:
    return len(value)


def wait_on_rank(worker: Any, rank: int, file: str) -> None:
    Path(file).with_suffix(f".{worker.rank}").touch()
    if worker.rank == rank:
        threading.Event().wait(60)
