"""What the launcher runs in tests instead of the real worker: says that it is there, and waits for its end."""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from omni_exec_torchrun.agent_end import end_with_agent

_TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR")


def main(folder: str) -> None:
    if os.environ.get("TINY_RANK") == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.environ.get("TINY_RANK") == "meet":
        meet()
    sys.stdout.write(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} is here\n")
    sys.stdout.flush()
    told = {name: os.environ[name] for name in _TOLD} | {"PID": os.getpid(), "TIME": time.time()}
    path = Path(folder) / str(os.getpid())
    path.with_suffix(".new").write_text(json.dumps(told))
    path.with_suffix(".new").rename(path.with_suffix(".json"))
    threading.Event().wait()


def meet() -> None:
    """Have all ranks meet in torch's store, as a process group would."""
    from torch.distributed import rendezvous

    timeout = datetime.timedelta(seconds=20)
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store.set(f"there/{rank}", "yes")
    store.wait([f"there/{one}" for one in range(size)], timeout)


if __name__ == "__main__":
    end_with_agent()
    main(sys.argv[1])
