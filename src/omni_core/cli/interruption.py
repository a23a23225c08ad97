"""Ctrl-C, SIGTERM and SIGHUP: stop in good order; Ctrl-C once more: leave at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from omni_core.cli.atomic import remove_unfinished
from omni_core.cli.exit_codes import exit_code_of_signal

_MESSAGES = {
    "SIGINT": "Interrupted: stopping. Press Ctrl-C again to leave at once.",
    "SIGTERM": "Terminated: stopping.",
    "SIGHUP": "The terminal is gone: stopping.",
}


class Interruption:
    """Whether the process was asked to end, and whether the user was told that it was noticed.

    Attributes:
        number: The first signal that asked for it; None while there was none.
        is_drawing: Whether bars are drawn on the terminal: the line is then left to who can remove them first.
        is_told: Whether the line was printed.
    """

    def __init__(self) -> None:
        self.is_drawing = False
        self.is_told = False
        self.number: int | None = None

    @property
    def exit_code(self) -> int:
        """What `omni` shall exit with."""
        return exit_code_of_signal(signal.SIGINT if self.number is None else self.number)

    def tell(self) -> None:
        """Print the one line, the first time."""
        if not self.is_told:
            self.is_told = True
            message = _MESSAGES[signal.Signals(self.number or signal.SIGINT).name]
            with contextlib.suppress(OSError):  # nobody reads it
                # Not through sys.stderr: a handler may run in the middle of another write to it.
                os.write(2, f"\n{message}\n".encode() if os.isatty(2) else f"{message}\n".encode())

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt the first time; end the process at Ctrl-C the second time.

        Other signals may well come twice: `timeout` sends SIGTERM to a process and to its group, and both the shell and
        the kernel send SIGHUP.
        """
        if self.number is not None:
            if number == signal.SIGINT:
                # Workers notice that their driver is gone.
                remove_unfinished()
                os._exit(exit_code_of_signal(number))
            return
        self.number = number
        if not self.is_drawing:
            self.tell()
        raise KeyboardInterrupt


@contextmanager
def watch_interruption() -> Iterator[Interruption]:
    """Handle the signals as above while the block runs.

    One that is ignored from the start stays ignored: SIGINT in what a script starts with `&`, SIGHUP under nohup.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {}
    for name in _MESSAGES:
        number = getattr(signal, name, None)
        handler = None if number is None else signal.getsignal(number)
        if number is not None and handler not in (None, signal.SIG_IGN):
            before[number] = signal.signal(number, interruption.handle)
    try:
        yield interruption
    finally:
        # Pressed again while the interpreter ends, Ctrl-C still ends the process at once.
        if interruption.number is None:
            for number, handler in before.items():
                signal.signal(number, handler)
