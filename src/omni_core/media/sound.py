"""Writing sound as .wav, and finding out how fast it is to be played."""

from __future__ import annotations

import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_core.media.artifacts import RATE_FIELDS

# Played at where nobody knows better; the user is told.
ASSUMED_RATE = 44_100
# More channels than this are no channels: the array is the other way round.
_MOST_CHANNELS = 16

# Where diffusers pipelines keep the rate of what they make, first match first.
_RATE_PATHS = (
    "vocoder.config.output_sampling_rate",
    "vocoder.config.sampling_rate",
    "audio_sampling_rate",
    "audio_sample_rate",
    "sample_rate",
    "vae.config.sampling_rate",
    "vae.sampling_rate",
    "vae.config.sample_rate",
    "audio_vae.config.sample_rate",
    "sound_tokenizer.config.sampling_rate",
    "unet.config.sample_rate",
    "mel.config.sample_rate",
)


def find_sampling_rate(worker: Any) -> int | None:
    """Return how many samples a second the worker's pipeline makes, or None. Called in the worker."""
    for path in _RATE_PATHS:
        found = worker.pipeline
        for name in path.split("."):
            found = getattr(found, name, None)
        rate = _as_rate(found)
        if rate is not None:
            return rate
    return None


def rate_in_output(output: Mapping[str, Any]) -> int | None:
    """Return the sampling rate that an output itself names, or None."""
    return next((rate for name in RATE_FIELDS if (rate := _as_rate(output.get(name))) is not None), None)


def write_wav(path: Path, samples: Any, rate: int) -> None:
    """Write 16-bit sound.

    Args:
        path: Where.
        samples: An array `[samples]`, `[channels, samples]` or `[samples, channels]`: 16-bit whole numbers, or numbers
            from -1 to 1, beyond which they are cut.
        rate: Samples a second.
    """
    import numpy as np

    array = np.asarray(samples)
    if array.ndim == 1:
        array = array[None]
    if array.shape[0] > _MOST_CHANNELS >= array.shape[1]:
        array = array.T
    if array.shape[0] > _MOST_CHANNELS:
        raise ValueError(f"an array of shape {array.shape} is no sound")
    if array.dtype != np.int16:
        array = (np.clip(np.nan_to_num(array.astype(np.float64)), -1, 1) * 32767).round().astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(array.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(array.T.astype("<i2").tobytes())


def _as_rate(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        return None
    return int(value)
