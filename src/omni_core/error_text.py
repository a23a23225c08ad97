"""What an exception says. One of a third party may raise when it is asked."""

from __future__ import annotations

import signal
import threading


def is_ctrl_c(error: BaseException) -> bool:
    """Whether the user of the program has pressed Ctrl-C: then the error is no request's, listener's or executor's.

    Python raises it in the main thread, and only where SIGINT is handled by a Python function.
    """
    return (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
        and callable(signal.getsignal(signal.SIGINT))
    )


def said(error: BaseException) -> str:
    """Return the message of an error, or that it cannot be shown; fails for Ctrl-C alone."""
    try:
        return str(error)
    except BaseException as raised:  # whatever it is, it is the fault of the error that was raised first
        if is_ctrl_c(raised):
            raise
        return f"(its message cannot be shown, since asking for it raises {type(raised).__name__})"


def described_error(error: BaseException) -> str:
    """Return the type and the message of an error in one text."""
    text = said(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
