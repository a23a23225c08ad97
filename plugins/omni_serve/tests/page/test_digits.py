"""The page of the model that ships, in Chromium: everything that a person does with it."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from omni_core.testing.warm_python import WarmPython
from serving import process_server

from .conftest import OpenPage, Watched

# Long enough to be seen, and never waited for.
LONG = 3000

_LABELS = (Path(__file__).with_name("labels.js")).read_text()
_TOO_SMALL = """
() => [...document.querySelectorAll("button, summary, input:not(.unseen)")]
  .filter((element) => element.checkVisibility() && element.getBoundingClientRect().height < 43.5)
  .map((element) => element.outerHTML)
"""
_PIXELS = """
(image) => {
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  canvas.getContext("2d").drawImage(image, 0, 0);
  return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
}
"""


@pytest.fixture(scope="module")
def url(warm_python: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with process_server(tmp_path_factory.mktemp("digits"), python=warm_python.command()) as running:
        yield running.url


def _answer(url: str, **fields: Any) -> list[str]:
    head = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(fields).encode(), head)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [line.removeprefix("data: ") for line in answer.read().decode().splitlines()]


def _pixels(watched: Watched, card: int = 0) -> list[int]:
    pixels: list[int] = watched.page.locator(".card .shown:not(.is-preview)").nth(card).evaluate(_PIXELS)
    return pixels


def test_type_generate_and_watch_it_sharpen(open_page: OpenPage, url: str) -> None:
    watched = open_page(url)
    watched.generate("a red seven", num_inference_steps=60)
    watched.wait_until_done(1)
    seen = watched.page.evaluate("window.seen")
    assert len(seen["previews"]) >= 3
    assert any(re.match(r"Step \d+ of 60", line) for line in seen["says"]), seen["says"]
    shown = watched.page.locator(".card .shown")
    assert shown.evaluate("(image) => [image.naturalWidth, image.naturalHeight]") == [32, 32]
    assert shown.evaluate("(image) => image.getBoundingClientRect().width % 32") == 0
    expect(shown).to_have_css("image-rendering", "pixelated")
    expect(watched.page.locator(".card-meta")).to_have_text(re.compile(r"32 . 32 px · seed \d+ · [\d.]+\ss"))
    expect(watched.page.locator("#live")).to_contain_text("Ready: a red seven")


def test_several_at_once_and_one_that_waits_for_a_connection(open_page: OpenPage, url: str) -> None:
    watched = open_page(url)
    for number in range(6):
        watched.fill(prompt=f"a red {number}", num_inference_steps=20)
        watched.page.keyboard.press("Control+Enter")
    expect(watched.cards()).to_have_count(6)
    watched.wait_until_done(6)
    seen = watched.page.evaluate("window.seen")
    assert "4 running" in seen["statuses"]
    assert any(line.startswith("Waits in this page") for line in seen["says"])


def test_abort_by_button_and_by_escape(open_page: OpenPage, url: str) -> None:
    watched = open_page(url)
    page = watched.page
    watched.generate("a red seven", num_inference_steps=LONG)
    expect(page.locator(".card-says")).to_contain_text("Step")
    watched.cards().get_by_role("button", name="Stop").click()
    expect(watched.cards("stopped")).to_have_count(1)
    expect(page.locator(".card-says")).to_have_text(re.compile(rf"Stopped after step \d+ of {LONG}"))
    expect(page.locator("#pill-text")).to_have_text("Ready")  # the server has stopped, too
    page.get_by_role("button", name="Try again").click()
    expect(watched.cards("running")).to_have_count(1)
    watched.cards("running").focus()
    page.keyboard.press("Escape")
    expect(watched.cards("stopped")).to_have_count(1)
    expect(page.locator("#pill-text")).to_have_text("Ready")


def test_several_of_one_request_and_their_seeds(open_page: OpenPage, url: str) -> None:
    watched = open_page(url)
    watched.generate("a red seven", n=3, seed=40, num_inference_steps=8)
    watched.wait_until_done(3)
    metas = watched.page.locator(".card-meta").all_inner_texts()
    assert [re.search(r"seed (\d+)", meta)[1] for meta in metas] == ["42", "41", "40"]  # type: ignore[index]
    watched.fill(num_inference_steps=LONG)
    watched.page.keyboard.press("Control+Enter")
    expect(watched.cards("running")).to_have_count(3)
    watched.page.get_by_role("button", name="Stop all", exact=True).click()
    expect(watched.cards("stopped")).to_have_count(3)


def test_reuse_gives_the_same_picture_again(open_page: OpenPage, url: str) -> None:
    watched = open_page(url)
    page = watched.page
    watched.generate("a blue four on white", num_inference_steps=12, guidance_scale=4.5, negative_prompt="red")
    watched.wait_until_done(1)
    watched.fill(prompt="something else", num_inference_steps=3, guidance_scale=1, negative_prompt="")
    page.get_by_role("button", name="Reuse settings and seed").click()
    for name, value in {
        "prompt": "a blue four on white",
        "num_inference_steps": "12",
        "guidance_scale": "4.5",
        "negative_prompt": "red",
    }.items():
        expect(page.locator(f"#f-{name}")).to_have_value(value)
    seed = page.locator("#f-seed").input_value()
    assert seed in page.locator(".card-meta").inner_text()
    page.keyboard.press("Control+Enter")
    watched.wait_until_done(2)
    assert _pixels(watched, 0) == _pixels(watched, 1)


def test_a_reload_keeps_what_is_done_and_tells_what_was_stopped(open_page: OpenPage, url: str) -> None:
    watched = open_page(url)
    page = watched.page
    watched.generate("a green nine", num_inference_steps=8)
    watched.wait_until_done(1)
    before = _pixels(watched)
    watched.generate("a red seven", num_inference_steps=LONG)
    expect(watched.cards("running")).to_have_count(1)
    other = open_page(url, context=page.context)  # another tab takes it for what it is
    expect(other.cards()).to_have_count(1)
    other.page.close()
    page.reload()
    page.wait_for_selector("body[data-ready]")
    expect(watched.cards("interrupted")).to_contain_text("The page was left while this was made")
    expect(page.locator("#f-prompt")).to_have_value("a red seven")
    expect(watched.cards("done").locator(".shown")).to_have_count(1)
    assert _pixels(watched) == before
    expect(page.locator("#pill-text")).to_have_text("Ready")
    page.get_by_role("button", name="Try again").click()
    expect(watched.cards("running")).to_have_count(1)
    page.get_by_role("button", name="Stop", exact=True).click()


def test_an_error_stands_beside_its_field(open_page: OpenPage, url: str) -> None:
    watched = open_page(url)
    watched.may_fail.append("status of 400")
    page = watched.page
    watched.generate("a red seven", width=33)
    problem = page.locator("#f-width-problem")
    expect(problem).to_contain_text("33")
    expect(page.locator("#f-width")).to_be_focused()
    expect(page.locator("#f-width")).to_have_attribute("aria-describedby", "f-width-problem")
    expect(watched.cards()).to_have_count(0)
    watched.fill(width=32)
    expect(problem).to_be_hidden()
    page.locator("#more > summary").click()
    page.get_by_label("Add a keyword of the pipeline").fill("clip_skip")
    page.get_by_role("button", name="Add", exact=True).click()
    watched.fill(clip_skip='{"a": 1}', seed=-4)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#f-seed-problem")).to_contain_text("greater than or equal to 0")
    page.get_by_role("button", name="Remove Clip skip").click()
    expect(page.locator("#f-clip_skip")).to_have_count(0)


def test_the_keyboard_alone(open_page: OpenPage, url: str) -> None:
    watched = open_page(url)
    page = watched.page

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id ?? ''"
            )
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", focused
            if re.match(name, focused):
                return
        raise AssertionError(name)

    tab_to("f-prompt")
    page.keyboard.type("a red seven")
    page.keyboard.press("Control+Enter")
    watched.wait_until_done(1)
    expect(page.locator("#f-prompt")).to_be_focused()
    tab_to("Open: a red seven")
    page.keyboard.press("Enter")
    expect(page.locator("dialog.viewer")).to_be_visible()
    expect(page.locator(".scale")).to_have_text(re.compile(r"32 . 32 px, shown \d+ times as large"))
    page.keyboard.press("Escape")
    expect(page.locator("dialog.viewer")).to_be_hidden()
    assert page.evaluate("document.activeElement.className") == "open"
    tab_to("Remove")
    page.keyboard.press("Enter")
    expect(watched.cards()).to_have_count(0)
    page.get_by_role("button", name="Undo").press("Enter")
    watched.wait_until_done(1)


@pytest.mark.parametrize("width", [1280, 390])
def test_names_and_widths(open_page: OpenPage, url: str, width: int) -> None:
    watched = open_page(url, width=width)
    page = watched.page

    def check() -> None:
        assert page.evaluate(_LABELS) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if width < 500:
            assert page.evaluate(_TOO_SMALL) == []

    check()
    page.get_by_role("button", name="a red seven").click()  # of the empty gallery
    watched.wait_until_done(1)
    if width < 500:
        page.locator("#settings > summary").click()
    watched.fill(num_inference_steps=LONG)
    page.keyboard.press("Control+Enter")
    expect(watched.cards("running")).to_have_count(1)
    check()
    page.locator("#more > summary").click()
    check()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Open: a red seven").click()
    expect(page.locator(".viewer .shown")).to_be_visible()
    check()


def test_the_viewer_downloads_and_copies(open_page: OpenPage, url: str) -> None:
    watched = open_page(url, permissions=["clipboard-read", "clipboard-write"])
    page = watched.page
    watched.generate("It's a red seven!", seed=7, num_inference_steps=8)
    watched.wait_until_done(1)
    watched.generate("a green nine", seed=8)
    watched.wait_until_done(2)
    page.get_by_role("button", name="Open: a green nine").click()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".about h2")).to_have_text("It's a red seven!")
    with page.expect_download() as download:
        page.locator(".about").get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "it-s-a-red-seven-seed-7.png"
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator(".toast")).to_contain_text("Command copied.")
    command = page.evaluate("navigator.clipboard.readText()")
    assert command.startswith("curl")
    assert r"It'\''s a red seven!" in command
    assert command.endswith("/v1/images/generations")


def test_asleep(open_page: OpenPage, url: str) -> None:
    watched = open_page(url)
    page = watched.page
    _answer(f"{url}v1/omni/sleep", level=1)
    try:
        expect(page.locator("#banner")).to_contain_text("The model is asleep.")
        watched.generate("a red seven", num_inference_steps=8)
        expect(watched.cards("queued")).to_have_count(1)
        page.get_by_role("button", name="Wake it up").click()
        expect(page.locator("#banner")).to_be_hidden()
        watched.wait_until_done(1)
    finally:
        _answer(f"{url}v1/omni/wake_up")


def test_progress_is_told_to_those_who_ask_alone(url: str) -> None:
    for asks in (False, True):
        fields = {
            "prompt": "a red seven",
            "n": 2,
            "stream": True,
            "num_inference_steps": 6,
            **({"progress": True} if asks else {}),
        }
        events = [json.loads(line) for line in _answer(f"{url}v1/images/generations", **fields) if line.startswith("{")]
        told = [event for event in events if event["type"] == "image_generation.progress"]
        assert [event["type"] for event in events if event not in told] == ["image_generation.completed"] * 2
        assert bool(told) == asks
    assert told[0] | {"estimated_s": 0} == {
        "type": "image_generation.progress",
        "number": 0,
        "status": "queued",
        "step": 0,
        "num_steps": 0,
        "position": 0,
        "estimated_s": 0,
    }
    last = [event for event in told if event["number"] == 1][-1]
    assert last["status"] == "in_progress"
    assert last["num_steps"] == 6
    assert last["estimated_s"] >= 0


def test_nothing_is_loaded_from_elsewhere_or_run_inline(open_page: OpenPage, url: str) -> None:
    watched = open_page("about:blank", ready=False)
    asked: list[str] = []
    watched.page.on("request", lambda request: asked.append(request.url))
    answer = watched.page.goto(url)
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    watched.page.wait_for_selector("body[data-ready]")
    assert all(one.startswith(url) for one in asked), asked
