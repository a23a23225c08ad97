"""Ctrl-C: once to stop in good order, twice to leave at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from omni_core.cli.exit_codes import INTERRUPTED

MESSAGE = "Interrupted: stopping. Press Ctrl-C again to leave at once."


class Interruption:
    """Whether Ctrl-C was pressed, and whether the user was told that it was noticed.

    Attributes:
        is_pressed: Whether it was pressed.
        is_drawing: Whether bars are drawn on the terminal: the line is then left to who can remove them first.
        is_told: Whether the line was printed.
    """

    def __init__(self) -> None:
        self.is_drawing = False
        self.is_told = False
        self.is_pressed = False

    def tell(self) -> None:
        """Print the one line, the first time."""
        if not self.is_told:
            self.is_told = True
            # Not through sys.stderr: a handler may run in the middle of another write to it.
            os.write(2, f"\n{MESSAGE}\n".encode() if os.isatty(2) else f"{MESSAGE}\n".encode())

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt the first time, end the process the second."""
        if self.is_pressed:
            # Workers notice that their driver is gone; files are written under temporary names.
            os._exit(INTERRUPTED)
        self.is_pressed = True
        if not self.is_drawing:
            self.tell()
        raise KeyboardInterrupt


@contextmanager
def watch_interruption() -> Iterator[Interruption]:
    """Handle Ctrl-C as above while the block runs."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    # Ignored from the start, as by nohup, it stays ignored.
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interruption.handle)
    try:
        yield interruption
    finally:
        # Pressed again while the interpreter ends, it still ends the process at once.
        if not interruption.is_pressed:
            signal.signal(signal.SIGINT, before)
