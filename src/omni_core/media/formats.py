"""The formats of files that each kind of output can be written in."""

from __future__ import annotations

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
VIDEOS = (".mp4", ".webm", ".webp", ".gif")
AUDIO = (".wav",)
ARRAYS = (".npz", ".safetensors")
ENDINGS = tuple(dict.fromkeys((*PICTURES, *VIDEOS, *AUDIO, *ARRAYS)))
