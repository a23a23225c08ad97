"""Noticing that the meeting place does not answer any more.

A machine that is cut off sends no farewell: what torch has asked it for is waited for until the kernel gives up, which
takes a quarter of an hour, and its ranks go on waiting for ranks that nobody can reach.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from omni_exec_torchrun.launch_settings import LaunchSettings
from omni_exec_torchrun.rendezvous import join_store

_KEY = "omni/alive"


def watch_rendezvous(settings: LaunchSettings, on_lost: Callable[[str], None]) -> None:
    """Ask the meeting place for an answer now and then, in threads of their own, and call back once if none comes.

    Args:
        settings: Where it is, how often to ask and how long to wait.
        on_lost: Gets what happened.
    """
    last_answer = [time.monotonic()]
    gone = threading.Event()
    reason = [f"it has not answered for {settings.lost_after_s} s"]

    def ask() -> None:
        try:
            store = join_store(settings)
            while True:
                store.set(_KEY, "1")
                store.get(_KEY)
                last_answer[0] = time.monotonic()
                time.sleep(settings.keep_alive_interval_s)
        except Exception as error:
            reason[0] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            gone.set()

    def watch() -> None:
        while not gone.wait(max(0.1, last_answer[0] + settings.lost_after_s - time.monotonic())):
            if time.monotonic() - last_answer[0] >= settings.lost_after_s:
                break
        on_lost(f"the rendezvous at {settings.rdzv_endpoint} is lost: {reason[0]}")

    threading.Thread(target=ask, name="omni-rendezvous-ask", daemon=True).start()
    threading.Thread(target=watch, name="omni-rendezvous-watch", daemon=True).start()
