"""Saying what is wrong with a request whose sequence cannot be split evenly."""

from __future__ import annotations

import traceback

_MODULE, _FUNCTION = "diffusers.hooks.context_parallel", "shard"


def explain_uneven(error: BaseException, parts: int) -> BaseException:
    """Return what to raise in place of `error`: an explanation, if it says that a sequence cannot be split evenly.

    Args:
        error: What a forward raised.
        parts: Into how many parts its sequence is split.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not isinstance(error, AssertionError) or not frames:
        return error
    # By the place, as diffusers has no error of its own for it.
    last = frames[-1]
    if (last.f_globals.get("__name__"), last.f_code.co_name) != (_MODULE, _FUNCTION):
        return error
    tensor, dim = last.f_locals.get("tensor"), last.f_locals.get("dim")
    length = f"{tensor.shape[dim]} tokens" if tensor is not None and isinstance(dim, int) else "tokens"
    return ValueError(
        f"The {parts} ranks that share a sequence (ulysses_degree times ring_degree) cannot split one of {length} "
        f"evenly. Choose a size (height, width, num_frames, max_sequence_length) that gives a multiple of {parts} "
        "for the picture and for the prompt, or run it without sequence parallelism."
    )
