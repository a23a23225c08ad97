"""What a request has made: of which kind, how many, how large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from omni_core.outputs import OmniRequestOutput

Kind = Literal["image", "video", "audio", "other"]
KINDS: tuple[Kind, ...] = ("image", "video", "audio", "other")
# Under which name a pipeline's output has them.
_NAMES: tuple[tuple[str, Kind], ...] = (("images", "image"), ("frames", "video"), ("audios", "audio"))
_WITHOUT_PIXELS = 0
# Lists of videos of frames.
_DEEPEST = 3


@dataclass(frozen=True, slots=True)
class Made:
    """What a request has made.

    Attributes:
        kind: What.
        number: How many.
        pixels: Of each picture, or of each frame of a video; 0 if that is not known.
    """

    kind: Kind
    number: int
    pixels: int


def made_by(output: OmniRequestOutput) -> Made:
    """Return what a request has made. Nothing is computed from the content, so that this costs microseconds."""
    for name, kind in _NAMES:
        value = output.output.get(name)
        if value is not None:
            return Made(kind, _number(value), _WITHOUT_PIXELS if kind == "audio" else _pixels(value))
    return Made("other", 1, _WITHOUT_PIXELS)


def _number(value: Any) -> int:
    try:
        return len(value)
    except TypeError:  # one that is no list
        return 1


def _pixels(value: Any) -> int:
    """Return the pixels of the first picture that a value has, as pictures, arrays or tensors in lists."""
    for _ in range(_DEEPEST):
        if isinstance(value, (list, tuple)) and value:  # no other sequence: the first of a text is a text again
            value = value[0]
    size = getattr(value, "size", None)
    if isinstance(size, tuple) and len(size) == 2:  # of PIL
        return int(size[0] * size[1])
    shape: tuple[int, ...] = getattr(value, "shape", ())
    if len(shape) < 3:
        return _WITHOUT_PIXELS
    # Tensors have their channels before height and width, arrays after.
    is_tensor = type(value).__module__.partition(".")[0] == "torch"
    height, width = shape[-2:] if is_tensor else shape[-3:-1]
    return int(height * width)
