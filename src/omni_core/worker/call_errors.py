"""What an exception out of a forward pass means."""

from __future__ import annotations

import signal
import threading

import torch

# How torch and its libraries say in a plain RuntimeError that memory ran out.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a device or of the host: the same work in smaller parts may succeed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in said(error) for words in _OUT_OF_MEMORY)


def is_ctrl_c(error: BaseException) -> bool:
    """Whether the user of the program has pressed Ctrl-C: then the error is no request's.

    Python raises it in the main thread, and only where SIGINT is handled by a Python function.
    """
    return (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
        and callable(signal.getsignal(signal.SIGINT))
    )


def described(error: BaseException) -> str:
    """Return the type and the message of an error in one text."""
    return f"{type(error).__name__}: {said(error)}"


def said(error: BaseException) -> str:
    """Return the message of an error. Those of third parties may raise when they are asked for it."""
    try:
        return str(error)
    except BaseException as raised:  # whatever it is, it is the fault of the error that was raised first
        if is_ctrl_c(raised):
            raise
        return "(its message cannot be shown)"
