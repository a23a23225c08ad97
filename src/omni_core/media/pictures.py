"""Writing pictures, and enlarging small ones for the eye."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omni_core.media.provenance import Provenance

if TYPE_CHECKING:
    from PIL import Image

# A picture smaller than this on its longer side is hard to see on a screen; it is enlarged to at least the second.
SMALL = 128
LARGE_ENOUGH = 256

_IMAGE_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131  # EXIF tags
# A JPEG holds at most 65533 bytes of EXIF; Pillow raises if there are more.
_MOST_OF_JPEG = 60_000


def as_picture(data: Any) -> Image.Image:
    """Return a PIL picture of a picture: one already, or an array `[H, W, C]` of bytes, or of numbers from 0 to 1."""
    from PIL import Image

    if isinstance(data, Image.Image):
        return data
    import numpy as np

    if data.dtype != np.uint8:
        data = (np.nan_to_num(np.clip(data.astype(np.float32), 0, 1)) * 255).round().astype(np.uint8)
    return Image.fromarray(data[..., 0] if data.shape[-1] == 1 else data)


def enlargement(size: tuple[int, int], wanted: str) -> int:
    """Return how many times a picture of `size` is to be enlarged; `wanted` is `auto` or a whole number."""
    if wanted != "auto":
        return int(wanted)
    longer = max(size)
    return 1 if longer >= SMALL else math.ceil(LARGE_ENOUGH / longer)


def enlarge(picture: Image.Image, factor: int) -> Image.Image:
    """Return the picture `factor` times as large."""
    if factor == 1:
        return picture
    from PIL import Image

    smooth = picture.mode in ("L", "LA", "RGB", "RGBA")
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)


def write_picture(path: Path, picture: Image.Image, provenance: Provenance) -> None:
    """Write a .png, .jpg, .webp or .gif, with how it was made inside."""
    ending = path.suffix.lower().removeprefix(".")
    path.write_bytes(encode_picture(picture, "jpeg" if ending == "jpg" else ending, provenance))


def encode_picture(picture: Image.Image, file_format: str, provenance: Provenance, quality: int = 95) -> bytes:
    """Return a picture as the bytes of a file, with how it was made inside.

    Args:
        picture: What to encode. What has an alpha channel loses it in a JPEG.
        file_format: `"png"`, `"jpeg"`, `"webp"` or `"gif"`.
        provenance: What the file says of itself.
        quality: From 1 to 100, of JPEG and WebP; PNG and GIF lose nothing.
    """
    from PIL import Image

    file = io.BytesIO()
    if file_format == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        for key, text in provenance.texts().items():
            info.add_text(key, text)  # as iTXt where it is more than Latin-1
        picture.save(file, "PNG", pnginfo=info)
    elif file_format == "gif":
        picture.save(file, "GIF", comment=provenance.json().encode())
    else:
        exif = Image.Exif()
        exif[_IMAGE_DESCRIPTION] = provenance.json(_MOST_OF_JPEG if file_format == "jpeg" else None)
        exif[_SOFTWARE] = provenance.texts()["Software"]
        if file_format == "webp":
            picture.save(file, "WEBP", quality=quality, exif=exif)
        else:
            picture.convert("RGB").save(file, "JPEG", quality=quality, subsampling=0, exif=exif)
    return file.getvalue()
