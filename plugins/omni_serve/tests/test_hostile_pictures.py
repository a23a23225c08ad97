"""Pictures of every kind that clients send: what can be read is read right, and what is a trap is refused."""

from __future__ import annotations

import base64
import gc
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from omni_serve.errors import ApiError
from omni_serve.requests.pictures import BYTES_OF_PIXEL, PictureRoom, decode_picture
from omni_serve.requests.places import refuse_places
from omni_serve.settings import ServeSettings
from serving import FACTORIES, PATIENCE_S, ThreadServer, picture_of, png, thread_server

EDITS = "v1/images/edits"
FIELDS = {"prompt": "a cat", "seed": 5, "num_inference_steps": 2, "strength": 0.9}
RED = Image.new("RGB", (32, 32), "red")


def saved(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(new: bytes) -> bytes:
    content = png(RED)
    place = content.index(b"IDAT") - 4
    return content[:place] + new + content[place:]


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


HALF = Image.new("L", (32, 32), 128)
BOMB = zlib.compress(bytes(100 << 20))
# What is read, and the colour of its first pixel.
READ: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "1": (saved(RED.convert("1", dither=Image.Dither.NONE), "PNG"), (0, 0, 0)),
    "L": (png(HALF), (128, 128, 128)),
    "LA": (png(Image.merge("LA", (HALF, HALF))), (128, 128, 128, 128)),
    "16 bits": (png(Image.fromarray(np.full((8, 8), 128 * 256, np.uint16))), (128, 128, 128)),
    "palette": (png(RED.convert("P", palette=Image.Palette.ADAPTIVE)), (255, 0, 0)),
    "palette with alpha": (png(RED.convert("RGBA").quantize()), (255, 0, 0, 255)),
    "one colour is none": (saved(RED, "PNG", transparency=(255, 0, 0)), (255, 0, 0, 0)),
    "CMYK": (saved(RED.convert("CMYK"), "JPEG", quality=100, subsampling=0), (254, 0, 0)),
    "lossless WebP": (saved(RED.convert("RGBA"), "WEBP", lossless=True), (255, 0, 0)),
    "a phone's": (saved(RED, "MPO", save_all=True, append_images=[HALF.convert("RGB")]), (254, 0, 0)),
    "odd EXIF": (saved(RED, "JPEG", exif=b"Exif\0\0junk"), (254, 0, 0)),
    "odd ICC": (saved(RED, "JPEG", icc_profile=b"junk" * 100), (254, 0, 0)),
    "something else behind it": (png(RED) + b"PK\3\4<script>", (255, 0, 0)),
}
REFUSED: dict[str, bytes] = {
    "APNG": saved(RED, "PNG", save_all=True, append_images=[Image.new("RGB", (32, 32))]),
    "a bomb of text": with_chunk(chunk(b"zTXt", b"a\0\0" + BOMB)),
    "a bomb of colours": with_chunk(chunk(b"iCCP", b"a\0\0" + BOMB)),
    "no pixels": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)),
    "cut off JPEG": saved(RED, "JPEG")[:-200],
    "cut off WebP": saved(RED, "WEBP")[:-20],
    "TIFF": saved(RED, "TIFF"),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


@pytest.mark.parametrize("case", READ)
def test_what_is_read(case: str) -> None:
    content, colour = READ[case]
    room = PictureRoom(1 << 30)
    picture = decode_picture(content, "image", 1 << 20, room)
    got = picture.getpixel((0, 0))
    assert isinstance(got, tuple)
    assert len(got) == len(colour)
    assert np.abs(np.subtract(got, colour)).max() <= 2
    assert room.held == picture.width * picture.height * BYTES_OF_PIXEL
    del picture
    gc.collect()
    assert room.held == 0


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    room = PictureRoom(1 << 30)
    with pytest.raises(ApiError) as caught:
        decode_picture(REFUSED[case], "image", 1 << 20, room)
    assert (caught.value.status, caught.value.param) == (400, "image")
    assert room.held == 0


def test_a_picture_that_lies_on_its_side() -> None:
    content = saved(Image.new("RGB", (64, 32)), "JPEG", exif=turned())
    assert decode_picture(content, "image", 1 << 20, PictureRoom(1 << 30)).size == (32, 64)


def test_room_for_one_is_always_there_and_for_more_only_if_there_is() -> None:
    room = PictureRoom(10)
    first = decode_picture(png(RED), "image", 1 << 20, room)
    with pytest.raises(ApiError) as caught:
        decode_picture(png(RED), "image", 1 << 20, room)
    assert (caught.value.status, caught.value.code) == (429, "engine_overloaded")
    assert int(caught.value.headers["retry-after"]) >= 1
    del first, caught
    gc.collect()
    assert room.held == 0


# By HTTP.


@pytest.fixture(scope="module")
def editing() -> Iterator[ThreadServer]:
    settings = ServeSettings(port=0, max_upload_pixels=1 << 20)
    with thread_server(settings, model=f"{FACTORIES}:image_to_image", max_pixels=512 * 512) as made:
        yield made


@pytest.fixture(scope="module")
def filling() -> Iterator[ThreadServer]:
    with thread_server(model="inpainting_model:build") as made:
        yield made


def url_of(content: bytes, kind: str = "data:image/png;base64,") -> str:
    return kind + base64.b64encode(content).decode()


def edit(running: ThreadServer, *, json: Any = None, files: Any = None, **fields: Any) -> httpx2.Response:
    body = (
        {"json": {**FIELDS, **fields, **json}} if json is not None else {"data": {**FIELDS, **fields}, "files": files}
    )
    return httpx2.post(f"{running.url}{EDITS}", timeout=PATIENCE_S, **body)  # type: ignore[arg-type]


def pixels(answer: httpx2.Response) -> np.ndarray[Any, Any]:
    assert answer.status_code == 200, answer.text
    return np.asarray(picture_of(answer.json()["data"][0]["b64_json"]), int)


@pytest.mark.parametrize("kind", ["data:image/png;base64,", "DATA:IMAGE/PNG;BASE64,"])
def test_a_picture_as_a_url_is_one_as_a_file(editing: ThreadServer, kind: str) -> None:
    content = png(RED.convert("RGBA").resize((64, 48)))
    as_file = edit(editing, files={"image": content}, size="32x32")
    as_url = edit(editing, json={"image": url_of(content, kind)}, size="32x32")
    assert (pixels(as_file) == pixels(as_url)).all()


@pytest.mark.parametrize(
    "value",
    [
        [url_of(png(RED)), "junk"],
        [url_of(png(RED)), 5],
        " http://127.0.0.1/x.png",
        "FILE:///etc/passwd",
        url_of(png(RED))[:100] + "\n" + url_of(png(RED))[100:],
        [url_of(png(RED))] * 20,
    ],
    ids=["text beside it", "a number beside it", "an address", "a path", "a line break", "too many"],
)
def test_what_is_no_picture_as_a_url(editing: ThreadServer, value: Any) -> None:
    assert edit(editing, json={"image": value}).status_code == 400


PLACES = ["http://127.0.0.1/x.png", "/etc/hostname", "x.png", "data:image/png;base64,AA=="]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda place: [[place]],
        lambda place: {"url": place},
        lambda place: [{"image_url": {"url": place}}],
        lambda place: [[[[place]]]],
        lambda place: {place: 1},
    ],
    ids=["lists", "a table", "as in a chat", "many lists", "a key"],
)
def test_nothing_is_opened_however_deep_it_stands(editing: ThreadServer, place: str, wrap: Any) -> None:
    """transformers' processors fetch addresses and open paths in lists of any depth."""
    for name in ("image", "mask_image", "ip_adapter_image", "input_images"):
        answer = edit(editing, json={"image": url_of(png(RED)), name: wrap(place)})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize("place", ["/etc/hostname", "x.png"])
def test_a_path_is_no_picture(editing: ThreadServer, place: str) -> None:
    for value in (place, [place], [url_of(png(RED)), place]):
        assert edit(editing, json={"image": value}).status_code == 400


@pytest.mark.parametrize(
    ("keywords", "is_refused"),
    [
        ({"cross_attention_kwargs": {"scale": 1, "adapter": ["http://127.0.0.1/x"]}}, True),
        ({"cross_attention_kwargs": {"scale": 1, "mode": "strong: very"}}, False),
        ({"prompt_2": "https://example.org is a site"}, False),
        ({"lyrics": "// la la"}, False),
        ({"video": [["/etc/passwd"]]}, True),
        ({"num_frames": 5, "image_guidance_scale": 1.5, "frame_rate": 8}, False),
    ],
)
def test_what_is_a_place(keywords: dict[str, Any], is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(ApiError, match="nothing is fetched"):
            refuse_places(keywords)
    else:
        refuse_places(keywords)


def test_pictures_are_bounded_together(editing: ThreadServer, wait_until: Any) -> None:
    """Each of these files has a hundred bytes."""
    large = saved(Image.new("1", (1000, 1000)), "PNG")
    gc.collect()
    gc.disable()  # nothing may keep them until Python looks for cycles
    try:
        answer = edit(editing, files=[("image[]", large)] * 2)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
        wait_until(lambda: editing.service.room.held == 0, PATIENCE_S)
    finally:
        gc.enable()


def test_a_picture_is_not_enlarged_beyond_what_is_made(editing: ThreadServer) -> None:
    answer = edit(editing, files={"image": png(RED)}, size="60000x60000")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "size")


def test_while_there_is_no_room_clients_are_told_to_come_again(editing: ThreadServer) -> None:
    room = editing.service.room
    room.held += 1 << 40
    try:
        answer = edit(editing, files={"image": png(RED)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "engine_overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    finally:
        room.held -= 1 << 40
    assert edit(editing, files={"image": png(RED)}).status_code == 200


def test_what_is_transparent_is_filled(filling: ThreadServer) -> None:
    alpha = Image.new("L", (32, 32), 255)
    alpha.paste(0, (0, 0, 16, 32))
    clear = RED.copy()
    clear.putalpha(alpha)
    mask = Image.eval(alpha, lambda value: 255 - value)
    of_alpha = pixels(edit(filling, files={"image": png(clear)}))
    for sent in (mask, mask.resize((64, 64)), mask.convert("RGB"), clear):
        of_mask = pixels(edit(filling, files={"image": png(RED), "mask": png(sent)}))
        assert of_mask.shape == of_alpha.shape
        assert (of_mask == of_alpha).all(), sent
    as_url = edit(filling, json={"image": url_of(png(RED)), "mask": url_of(png(mask))})
    assert (pixels(as_url) == of_alpha).all()
    other = edit(filling, files={"image": png(RED), "mask": png(Image.new("L", (32, 32), 255))})
    assert not (pixels(other) == of_alpha).all()
