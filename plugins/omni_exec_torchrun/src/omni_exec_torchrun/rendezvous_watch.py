"""Detects that the rendezvous does not reply any more.

A node that is cut off does not close its connections. Without this check, torch would wait until the kernel's timeout,
which is a quarter of an hour, and the ranks would wait for unreachable ranks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from omni_exec_torchrun.launch_settings import LaunchSettings
from omni_exec_torchrun.rendezvous import join_store

_KEY = "omni/alive"


def watch_rendezvous(settings: LaunchSettings, on_lost: Callable[[str], None]) -> None:
    """Check the rendezvous regularly, in two threads, and call `on_lost` once if it does not reply.

    Args:
        settings: The address, the interval and the timeout.
        on_lost: Called with the reason.
    """
    last_reply = [time.monotonic()]
    gone = threading.Event()
    reason = [f"it has not answered for {settings.lost_after_s} s"]

    def ask() -> None:
        try:
            store = join_store(settings)
            while True:
                store.set(_KEY, "1")
                store.get(_KEY)
                last_reply[0] = time.monotonic()
                time.sleep(settings.keep_alive_interval_s)
        except Exception as error:
            reason[0] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            gone.set()

    def watch() -> None:
        while not gone.wait(max(0.1, last_reply[0] + settings.lost_after_s - time.monotonic())):
            if time.monotonic() - last_reply[0] >= settings.lost_after_s:
                break
        on_lost(f"the rendezvous at {settings.rdzv_endpoint} is lost: {reason[0]}")

    threading.Thread(target=ask, name="omni-rendezvous-ask", daemon=True).start()
    threading.Thread(target=watch, name="omni-rendezvous-watch", daemon=True).start()
