"""How large a request may be. What is beyond is refused before a worker sees it: there it would hold others up.

A tokenizer needs half a minute for a prompt of a megabyte and cannot be interrupted meanwhile; a picture of 65536
pixels a side takes all memory there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omni_core.config import OmniDiffusionConfig
from omni_core.errors import RequestError
from omni_core.pipeline_info import FRAME_ARGUMENTS, USUAL_SIDE, is_number
from omni_core.request import OmniDiffusionRequest
from omni_core.validation import described

# Parts of an argument that are looked at; what has more is not measured to its end.
_MOST_PARTS = 1_000_000
# So many pictures' pixels a video may have.
_PICTURES_OF_A_VIDEO = 10
_CONTAINERS = (list, tuple, set, frozenset)


def check_size(request: OmniDiffusionRequest, config: OmniDiffusionConfig, arguments: Mapping[str, Any]) -> None:
    """Return if a request is within the limits of the configuration.

    Args:
        request: Which.
        config: With the limits; None there is no limit.
        arguments: What the pipeline will be called with, defaults included.

    Raises:
        RequestError: It is too large; the message names the limit.
    """
    for name, value in arguments.items():
        for text in value if type(value) in (list, tuple) else (value,):
            if isinstance(text, str):
                length = str.__len__(text)
                _refuse_above(request, f"{name} has {length} characters", length, config, "max_prompt_length")
    steps = arguments.get("num_inference_steps")
    if is_number(steps):
        _refuse_above(request, f"num_inference_steps is {steps}", steps, config, "max_steps")
    height, width, number = arguments.get("height"), arguments.get("width"), request.num_outputs_per_prompt
    # What the pipeline makes of a side that is not given is not known.
    sides = [side if is_number(side) else USUAL_SIDE for side in (width, height)]
    pixels = sides[0] * sides[1] * number
    what = f"{number} outputs of {sides[0]} x {sides[1]} are {pixels} pixels"
    _refuse_above(request, what, pixels, config, "max_pixels")
    for name in FRAME_ARGUMENTS:
        frames = arguments.get(name)
        if is_number(frames):
            what = f"{name} is {described(frames)}, and a video may have {_PICTURES_OF_A_VIDEO} times max_pixels"
            _refuse_above(request, what, -(-frames * pixels // _PICTURES_OF_A_VIDEO), config, "max_pixels")
    # So many tokens are encoded, however short the prompt. The pipeline's own number is its owner's choice.
    tokens = request.extra_args.get("max_sequence_length")
    if is_number(tokens):
        _refuse_above(request, f"max_sequence_length is {described(tokens)}", tokens, config, "max_prompt_length")
    if config.max_argument_bytes is not None:
        size = size_of(request.extra_args, config.max_argument_bytes)
        _refuse_above(request, f"extra_args hold {size} bytes or more", size, config, "max_argument_bytes")


def size_of(value: Any, enough: int) -> int:
    """Return about how many bytes the pictures, arrays, tensors and texts in a value take; fails never.

    Args:
        value: Anything.
        enough: Bytes after which the rest is not counted.
    """
    size = 0
    left, seen = [value], set[int]()
    while left and size <= enough and len(seen) < _MOST_PARTS:
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        kind = type(part)
        if kind is dict:
            left.extend(dict.keys(part))
            left.extend(dict.values(part))
        elif kind in _CONTAINERS:
            left.extend(part)
        else:
            size += _own_size(part)
    return enough + 1 if left else size  # what is not measured to its end is too much


def _own_size(part: Any) -> int:
    try:
        if isinstance(part, (str, bytes, bytearray)):
            return len(part)
        size = getattr(part, "nbytes", None)  # of arrays and tensors
        if size is None and hasattr(part, "getbands"):  # of pictures
            size = part.width * part.height * len(part.getbands())
        return size if type(size) is int else 0
    except Exception:  # an object that raises when it is asked
        return 0


def _refuse_above(
    request: OmniDiffusionRequest, what: str, value: Any, config: OmniDiffusionConfig, limit: str
) -> None:
    most = getattr(config, limit)
    if most is not None and value > most:
        raise RequestError(
            f"Request {request.request_id!r} is too large: {what}, and {limit} = {most}. Ask for less, or raise "
            f"{limit} in the configuration."
        )
