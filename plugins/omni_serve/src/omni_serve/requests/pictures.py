"""Pictures that clients send: bytes of unknown kind, which are looked at before they are decoded."""

from __future__ import annotations

import base64
import binascii
import io
import threading
import weakref
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageOps

from omni_serve.errors import OVERLOADED, ApiError, retry_after

# A pipeline could fetch what the client may not see.
_URLS = ("data:image/", "http:", "https:", "ftp:", "file:", "s3:", "gs:", "//")
# RGBA; what pipelines get has no more.
BYTES_OF_PIXEL = 4
_FULL_RETRY_S = 5.0
_FORMATS = ("PNG", "JPEG", "WEBP")


class PictureRoom:
    """Bounds the memory that pictures of clients take, from when they are decoded until nobody has them any more.

    A file of some kilobytes can unfold into hundreds of megabytes, and requests that wait keep their pictures. May be
    used from any thread.

    Args:
        most_bytes: Bytes of all together.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self.held = 0

    def keep(self, size: tuple[int, int], make: Callable[[], Image.Image]) -> Image.Image:
        """Make a picture for which there is room, and return it.

        Args:
            size: Its width and height.
            make: Makes it, as an object that is new.

        Raises:
            ApiError: There is no room now.
        """
        num_bytes = size[0] * size[1] * BYTES_OF_PIXEL
        with self._lock:
            if self.held and self.held + num_bytes > self._most_bytes:
                raise ApiError(
                    429,
                    "The server holds too many pictures of other requests now.",
                    code=OVERLOADED,
                    headers=retry_after(_FULL_RETRY_S),
                )
            self.held += num_bytes
        try:
            picture = make()
        except BaseException:
            self._free(num_bytes)
            raise
        weakref.finalize(picture, self._free, num_bytes).atexit = False
        return picture

    def _free(self, num_bytes: int) -> None:
        with self._lock:
            self.held -= num_bytes


def decode_picture(data: bytes, param: str, max_pixels: int, room: PictureRoom) -> Image.Image:
    """Return an uploaded picture, upright, in RGB, or RGBA where it is transparent somewhere.

    This takes a while: it is called in a thread.

    Args:
        data: Bytes of a file. What the client says of its kind is not believed.
        param: Field that it came in, for the message.
        max_pixels: Most pixels. A small file can unfold into gigabytes, so the header is asked first.
        room: For the picture.

    Raises:
        ApiError: It is no picture of a known kind, or too large, or has several frames, or there is no room.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ApiError(
                    400, f"{param}: {width}x{height} pixels are more than the {max_pixels} allowed.", param=param
                )
            # The further pictures of an MPO, which phones write as .jpg, are no frames: smaller ones, or maps.
            if picture.format != "MPO" and getattr(picture, "n_frames", 1) != 1:
                raise ApiError(400, f"{param}: the picture has several frames.", param=param)
            return room.keep(picture.size, lambda: _plain(ImageOps.exif_transpose(picture)))
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


def _plain(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits, of which Pillow would cut off all above the lower 8
        return picture.point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    has_alpha = "A" in picture.getbands() or "transparency" in picture.info
    return picture.convert("RGBA" if has_alpha else "RGB")


def bytes_of_url(url: Any, param: str) -> bytes:
    """Return what a `data:` URL holds.

    Args:
        url: The URL. Others are refused: the server would fetch for a client what that may not see.
        param: Field that it came in.

    Raises:
        ApiError: It is another URL, or malformed, or none.
    """
    head, comma, content = url.partition(",") if isinstance(url, str) else ("", "", "")
    head = head.lower()
    if not head.startswith("data:") or not comma or not head.endswith(";base64"):
        raise ApiError(400, f"{param}: pictures are sent as files, or as data:image/png;base64,… URLs.", param=param)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{param}: the URL does not hold base64.", param=param) from None


def is_url(value: Any) -> bool:
    """Return whether a value of a body is a picture as a URL, or where something could be fetched from."""
    return isinstance(value, str) and value[:64].lstrip().lower().startswith(_URLS)


def edit_mask(mask: Image.Image) -> Image.Image:
    """Return a mask as diffusers has it: white where the picture is to change.

    Args:
        mask: As OpenAI has it, transparent where the picture is to change; or one of diffusers' kind.
    """
    if mask.mode == "RGBA":
        return ImageOps.invert(mask.getchannel("A"))
    return mask.convert("L")
