"""What a process that was just forked does first, to be as one that was started anew."""

from __future__ import annotations

import gc
import random
import signal
import sys


def begin_child() -> None:
    """Take signals as usual, draw random numbers of one's own, and let everything be collected again.

    Torch's generator is left: it begins with the same seed in every new process.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # Children of one parent would all draw the same.
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    gc.unfreeze()
