"""Pictures that clients send: bytes of unknown kind, which are looked at before they are decoded."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

from PIL import Image, ImageOps

from omni_serve.errors import ApiError

# A pipeline could fetch what the client may not see.
_ADDRESSES = ("http:", "https:", "ftp:", "file:", "s3:", "gs:", "//")
_FORMATS = ("PNG", "JPEG", "WEBP")


def decode_picture(data: bytes, param: str, max_pixels: int) -> Image.Image:
    """Return an uploaded picture, upright, in RGB, or RGBA where it is transparent somewhere.

    This takes a while: it is called in a thread.

    Args:
        data: Bytes of a file. What the client says of its kind is not believed.
        param: Field that it came in, for the message.
        max_pixels: Most pixels. A small file can unfold into gigabytes, so the header is asked first.

    Raises:
        ApiError: It is no picture of a known kind, or too large, or has several frames.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ApiError(
                    400, f"{param}: {width}x{height} pixels are more than the {max_pixels} allowed.", param=param
                )
            if getattr(picture, "n_frames", 1) != 1:
                raise ApiError(400, f"{param}: the picture has several frames.", param=param)
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            has_alpha = "A" in upright.getbands() or "transparency" in upright.info
            return upright.convert("RGBA" if has_alpha else "RGB")
    except ApiError:
        raise
    except Image.DecompressionBombError:  # far beyond
        raise ApiError(400, f"{param}: it has more than the {max_pixels} pixels allowed.", param=param) from None
    except Exception as error:  # Pillow's decoders raise whatever they like on malformed files
        raise ApiError(
            400,
            f"{param}: not a PNG, JPEG or WebP picture ({type(error).__name__}).",
            param=param,
            code="invalid_image",
        ) from None


def bytes_of_url(url: str, param: str) -> bytes:
    """Return what a `data:` URL holds.

    Args:
        url: The URL. Others are refused: the server would fetch for a client what that may not see.
        param: Field that it came in.

    Raises:
        ApiError: It is another URL, or malformed.
    """
    head, comma, content = url.partition(",")
    if not head.startswith("data:") or not comma or not head.endswith(";base64"):
        raise ApiError(400, f"{param}: pictures are sent as files, or as data:image/png;base64,… URLs.", param=param)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{param}: the URL does not hold base64.", param=param) from None


def is_data_url(value: Any) -> bool:
    """Return whether a value of a body is a picture as a URL."""
    return isinstance(value, str) and value.startswith("data:image/")


def is_address(value: Any) -> bool:
    """Return whether a value of a body is where something could be fetched from."""
    return isinstance(value, str) and value.lower().startswith(_ADDRESSES)


def edit_mask(mask: Image.Image) -> Image.Image:
    """Return a mask as diffusers has it: white where the picture is to change.

    Args:
        mask: As OpenAI has it, transparent where the picture is to change; or one of diffusers' kind.
    """
    if mask.mode == "RGBA":
        return ImageOps.invert(mask.getchannel("A"))
    return mask.convert("L")
