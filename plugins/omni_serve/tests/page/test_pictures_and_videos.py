"""The page of pipelines that take pictures, and of those whose results are jobs, in Chromium."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import expect

from omni_core.testing.warm_python import WarmPython
from serving import process_server

from .conftest import OpenPage

_HERE = Path(__file__).parent
_JOBS = re.compile(r"/v1/.*[?]limit=")
_DROP = """
([target, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
  const event = target === "paste" ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
    : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.querySelector(".field-picture").dispatchEvent(event);
}
"""
_KEEP_FORMS = """
() => {
  const real = window.fetch;
  window.fetch = (path, options) => {
    if (options?.body instanceof FormData) window.sent = options.body;
    return real(path, options);
  };
}
"""
_ALPHA_OF_MASK = """
async () => {
  const mask = await createImageBitmap(window.sent.get("mask"));
  const context = new OffscreenCanvas(mask.width, mask.height).getContext("2d");
  context.drawImage(mask, 0, 0);
  const alpha = [...context.getImageData(0, 0, mask.width, mask.height).data].filter((_, index) => index % 4 === 3);
  return { size: [mask.width, mask.height], values: [...new Set(alpha)].sort((a, b) => a - b),
    painted: alpha[64 * 19 + 24], kept: alpha[0] };
}
"""


@pytest.fixture(scope="module")
def inpainting(warm_python: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with process_server(
        tmp_path_factory.mktemp("inpainting"),
        "--model",
        "inpainting_model:build",
        python=warm_python.command(),
        PYTHONPATH=str(_HERE),
    ) as running:
        yield running.url


@pytest.fixture
def held(
    request: pytest.FixtureRequest, warm_python: WarmPython, tmp_path: Path
) -> Iterator[tuple[str, Callable[[], None]]]:
    """A server that stops in the middle of what it makes first, and what makes it go on."""
    gate = tmp_path / "gate"
    with process_server(
        tmp_path,
        "--model",
        f"slow_models:{request.param}",
        python=warm_python.command(),
        PYTHONPATH=str(_HERE),
        GATE=str(gate),
    ) as running:
        yield running.url, gate.touch


def _picture(side: int = 64) -> bytes:
    picture = Image.new("RGB", (side, side), (40, 90, 140))
    ImageDraw.Draw(picture).ellipse((8, 8, side - 8, side - 8), fill=(240, 180, 60))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_upload_paint_a_mask_and_edit_what_comes_of_it(open_page: OpenPage, inpainting: str) -> None:
    watched = open_page(inpainting)
    page = watched.page
    page.locator("#f-image").set_input_files({"name": "in.png", "mimeType": "image/png", "buffer": _picture()})
    expect(page.locator(".chosen-says")).to_have_text("Picture to start from: 64 \u00d7 64, all of which may change")
    page.get_by_role("button", name="Paint a mask").click()
    box = page.locator(".mask-canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 80, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 140, steps=5)
    page.mouse.up()
    page.get_by_role("button", name="Use this mask").click()
    expect(page.locator(".chosen-says")).to_have_text("Picture to start from: 64 \u00d7 64, with a mask")
    page.evaluate(_KEEP_FORMS)
    with page.expect_request("**/v1/images/edits"):
        watched.generate("a boat", num_inference_steps=4, strength=1)
    watched.wait_until_done(1)
    # As OpenAI has it: transparent where the picture is to change.
    assert page.evaluate(_ALPHA_OF_MASK) == {"size": [64, 64], "values": [0, 255], "painted": 0, "kept": 255}
    page.get_by_role("button", name="Edit this picture").click()
    expect(page.locator(".chosen-says")).to_have_text(re.compile(r"^Picture to start from: \d+ . \d+, all of which"))
    page.keyboard.press("Control+Enter")
    watched.wait_until_done(2)
    page.get_by_role("button", name="Reuse settings and seed").nth(1).click()
    expect(page.locator(".chosen-says")).to_have_text("Picture to start from: 64 \u00d7 64, with a mask")


def test_a_mask_by_keyboard_and_pictures_that_are_dropped_or_pasted(open_page: OpenPage, inpainting: str) -> None:
    watched = open_page(inpainting)
    page = watched.page
    for way, side in (("drop", 48), ("paste", 40)):
        page.evaluate(_DROP, [way, base64.b64encode(_picture(side)).decode()])
        expect(page.locator(".chosen-says")).to_have_text(
            f"Picture to start from: {side} \u00d7 {side}, all of which may change"
        )
    page.get_by_role("button", name="Paint a mask").press("Enter")
    expect(page.locator(".mask-canvas")).to_be_focused()
    for key in ("ArrowLeft", "Space", "ArrowUp", "Space"):
        page.keyboard.press(key)
    page.get_by_role("button", name="Use this mask").press("Enter")
    expect(page.get_by_role("button", name="Change the mask")).to_be_visible()
    page.get_by_role("button", name="Take the picture away").press("Enter")
    expect(page.locator("#f-image")).to_be_focused()


def test_a_picture_that_lacks_or_is_none(open_page: OpenPage, inpainting: str) -> None:
    watched = open_page(inpainting)
    watched.may_fail.append("status of (400|500)")
    page = watched.page
    page.locator("#f-image").set_input_files({"name": "in.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.locator("#f-image-problem")).to_contain_text("This is not a picture")
    expect(page.locator(".chosen:visible")).to_have_count(0)


@pytest.mark.parametrize(
    ("held", "fields", "ending"),
    [
        ("video", {"width": 16, "height": 16, "num_frames": 5, "max_sequence_length": 16}, "mp4|webp"),
        ("audio", {}, "wav"),
    ],
    indirect=["held"],
)
def test_a_job_goes_on_without_the_page(
    open_page: OpenPage, held: tuple[str, Callable[[], None]], fields: dict[str, Any], ending: str
) -> None:
    url, let_go_on = held
    watched = open_page(url)
    page = watched.page
    page.locator("#more > summary").click()
    watched.generate("waves", num_inference_steps=40, guidance_scale=5, **fields)
    expect(watched.cards("running")).to_have_count(1)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    expect(watched.cards("running")).to_have_count(1)
    expect(page.locator(".card-says")).to_contain_text("% done")
    watched.may_fail.append("ERR_FAILED")
    page.route(_JOBS, lambda route: route.abort(), times=1)
    with page.expect_event("requestfailed"):  # which is no reason not to ask again
        pass
    let_go_on()
    expect(watched.cards("done")).to_have_count(1)
    expect(page.locator(".card audio, .card .shown")).to_be_visible()
    page.get_by_role("button", name="Reuse settings and seed").click()
    for name, value in {"num_inference_steps": 40, **fields}.items():
        expect(page.locator(f"#f-{name}")).to_have_value(str(value))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert re.fullmatch(rf"waves-seed-\d+\.({ending})", download.value.suggested_filename)
    watched.fill(num_inference_steps=20000)
    page.keyboard.press("Control+Enter")
    expect(watched.cards("running")).to_have_count(1)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(watched.cards("stopped")).to_have_count(1)
    expect(page.locator("#pill-text")).to_have_text("Ready")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    expect(watched.cards("done")).to_have_count(1)
    expect(watched.cards()).to_have_count(1)
    # As where a hundred others have been made since.
    page.route(_JOBS, lambda route: route.fulfill(json={"data": []}))
    page.reload()
    page.wait_for_selector("body[data-ready]")
    expect(watched.cards("done")).to_have_count(1)
    expect(page.locator(".card audio, .card .shown")).to_be_visible()
