"""Writing videos: .mp4 and .webm with PyAV, animated .webp and .gif without."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omni_core.media.provenance import Provenance

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_FPS = 16.0
NEEDS_PYAV = frozenset({".mp4", ".webm"})
# In order of preference; which are there depends on how FFmpeg was built.
_CODECS = {".mp4": ("libx264", "mpeg4"), ".webm": ("libvpx-vp9", "libvpx")}


def have_pyav() -> bool:
    """Return whether PyAV is installed."""
    try:
        return importlib.util.find_spec("av") is not None
    except ValueError:  # what find_spec makes of a module blocked in sys.modules
        return sys.modules.get("av") is not None


def default_ending() -> str:
    """Return how videos are written where nothing else is said."""
    return ".mp4" if have_pyav() else ".webp"


def missing_package(ending: str | None) -> str | None:
    """Return what has to be installed for files with this ending; None if nothing has to be."""
    if ending not in NEEDS_PYAV or have_pyav():
        return None
    return f"Writing {ending} needs PyAV: pip install 'omni-core[video]'. Animated .webp and .gif need nothing more."


def write_video(path: Path, frames: Sequence[Image.Image], fps: float, provenance: Provenance) -> None:
    """Write the frames as a video in the format that the ending says."""
    ending = path.suffix.lower()
    if ending in NEEDS_PYAV:
        _write_with_pyav(path, frames, fps, provenance)
        return
    from PIL import Image

    options: dict[str, Any] = {"comment": provenance.json().encode()}
    if ending == ".webp":
        exif = Image.Exif()
        exif[0x010E] = provenance.json()
        options = {"quality": 90, "exif": exif}
    first, *others = (frame.convert("RGB") for frame in frames)
    duration = 1000 / fps
    if ending == ".webp":  # the encoder takes whole milliseconds
        duration = max(1, round(duration))
    first.save(path, save_all=True, append_images=others, duration=duration, loop=0, **options)


def _write_with_pyav(path: Path, frames: Sequence[Image.Image], fps: float, provenance: Provenance) -> None:
    import av

    codec = next((name for name in _CODECS[path.suffix.lower()] if name in av.codecs_available), None)
    if codec is None:
        raise OSError(f"this PyAV has no encoder for {path.suffix}: {', '.join(_CODECS[path.suffix.lower()])}")
    options = {"movflags": "use_metadata_tags"} if path.suffix.lower() == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        container.metadata["comment"] = provenance.json()
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = (_even(side) for side in frames[0].size)
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "18"}
        for frame in frames:
            # The colours are stored at half the size, so that the sides have to be even.
            even = frame.convert("RGB").crop((0, 0, stream.width, stream.height))
            for packet in stream.encode(av.VideoFrame.from_image(even)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _even(side: int) -> int:
    return max(2, side - side % 2)
