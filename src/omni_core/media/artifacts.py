"""Telling what a pipeline made: pictures, videos, sound, or arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from omni_core.media.formats import ARRAYS

Kind = Literal["picture", "video", "audio", "arrays"]

# Fields of outputs that say something about the others, and are no output of their own.
_SAFETY_FIELDS = ("nsfw_content_detected", "nsfw_detected", "watermark_detected")
RATE_FIELDS = ("sampling_rate", "sample_rate", "audio_sample_rate")
_VIDEO_FIELDS = ("frames", "videos", "video")
_AUDIO_FIELDS = ("audios", "audio", "waveform", "waveforms", "sound")
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something that becomes one file.

    Attributes:
        kind: What it is.
        data: A picture (PIL or array `[H, W, C]`), the frames of a video (a list of those), samples `[C, S]` or `[S]`,
            or arrays by name.
    """

    kind: Kind
    data: Any


def artifacts_of(
    output: Mapping[str, Any], output_type: str | None, ending: str | None = None
) -> tuple[list[Artifact], list[str]]:
    """Divide the output of a request into what becomes files.

    Args:
        output: Every field of the pipeline's own output.
        output_type: What the request asked for. Arrays that were asked for are saved as arrays, unless `ending` says
            otherwise; those that a pipeline makes by itself are turned into what they show.
        ending: The ending that the user gave.

    Returns:
        The files to be, in order, and the names of fields that cannot be saved.
    """
    as_arrays = ending in ARRAYS or (ending is None and output_type not in (None, "pil"))
    artifacts: list[Artifact] = []
    arrays: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in output.items():
        if value is None or name in _SAFETY_FIELDS or name in RATE_FIELDS:
            continue
        found = _media(name, value, as_arrays)
        if found:
            artifacts.extend(found)
        elif not _collect(arrays, name, value):
            left_out.append(name)
    if arrays:
        artifacts.append(Artifact("arrays", arrays))
    return artifacts, left_out


def to_numpy(value: Any) -> Any:
    """Return an array or tensor as a numpy array (bfloat16, which numpy has not, as float32)."""
    if is_tensor(value):
        value = value.detach().cpu()
        return value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
    return value


def is_tensor(value: Any) -> bool:
    """Return whether `value` is a torch tensor."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def _is_array(value: Any) -> bool:
    return is_tensor(value) or (type(value).__module__ == "numpy" and hasattr(value, "shape"))


def _is_picture(value: Any) -> bool:
    return any(base.__module__ == "PIL.Image" for base in type(value).__mro__)


def _media(name: str, value: Any, as_arrays: bool) -> list[Artifact]:
    if _is_picture(value):
        return [Artifact("picture", value)]
    if isinstance(value, (list, tuple)) and value:
        if all(_is_picture(item) for item in value):
            if name in _VIDEO_FIELDS:  # the frames of one video
                return [Artifact("video", list(value))]
            return [Artifact("picture", item) for item in value]
        if all(isinstance(item, (list, tuple)) and item and all(map(_is_picture, item)) for item in value):
            return [Artifact("video", list(item)) for item in value]
        if all(_is_array(item) for item in value) and not as_arrays:
            found = [_single(name, to_numpy(item), is_tensor(item)) for item in value]
            return [] if any(one is None for one in found) else [one for one in found if one is not None]
    if _is_array(value) and not as_arrays and len(value.shape) > 0:
        batch = to_numpy(value)
        if name in _VIDEO_FIELDS and batch.ndim == 4:  # one video, not a batch of them
            batch = batch[None]
        if name in _AUDIO_FIELDS and batch.ndim == 1:
            batch = batch[None]
        found = [_single(name, item, is_tensor(value)) for item in batch]
        return [one for one in found if one is not None] if all(one is not None for one in found) else []
    return []


def _single(name: str, item: Any, channels_first: bool) -> Artifact | None:
    """Return what one member of a batch is, or None if it is nothing that can be seen or heard."""
    if name in _AUDIO_FIELDS:
        return Artifact("audio", item) if item.ndim in (1, 2) else None
    if name != "images" and name not in _VIDEO_FIELDS:
        return None
    if channels_first and item.ndim in (3, 4):
        item = item.swapaxes(-3, -2).swapaxes(-2, -1)
    if item.ndim not in (3, 4) or item.shape[-1] not in _CHANNELS:
        return None
    return Artifact("picture", item) if item.ndim == 3 else Artifact("video", list(item))


def _collect(arrays: dict[str, Any], name: str, value: Any) -> bool:
    if _is_array(value):
        arrays[name] = value
    elif isinstance(value, (list, tuple)) and value and all(_is_array(item) for item in value):
        arrays.update({f"{name}_{number}": item for number, item in enumerate(value)})
    else:
        return False
    return True
