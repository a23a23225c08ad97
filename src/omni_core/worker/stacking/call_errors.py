"""What an exception out of a forward pass means."""

from __future__ import annotations

import torch

from omni_core.error_text import said

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
