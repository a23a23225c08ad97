"""Makes docs/images/page-1280.png and page-390.png: the page of `omni serve` with a gallery and a running request.

Run it with omni-serve, playwright and Debian's Chromium installed, beside a server with the small model:
`omni serve --port 8000`, then `python docs/images/record_page.py http://127.0.0.1:8000/`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PROMPTS = (
    "a red seven",
    "a blue four on white",
    "a green nine",
    "a purple two on black",
    "a pink six",
    "a yellow three on black",
    "a cyan eight",
    "an orange five on black",
)
# Width and height of the window, and pictures in the gallery.
WINDOWS = ((1280, 860, 8), (390, 1320, 5))


def record(browser: Browser, url: str, window: tuple[int, int, int], folder: Path) -> None:
    """Fill the gallery, begin a long request, and take a picture in the middle of it."""
    width, height, number = window
    is_phone = width < 500
    size = {"width": width, "height": height}
    context = browser.new_context(viewport=size, color_scheme="dark", has_touch=is_phone, is_mobile=is_phone)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("body[data-ready]", timeout=20_000)
    if is_phone:
        page.locator("#settings > summary").click()
    for seed, prompt in enumerate(PROMPTS[-number:], 32):
        page.fill("#f-prompt", prompt)
        page.fill("#f-seed", str(seed))
        page.click("#generate")
    expect(page.locator(".card-bar:visible")).to_have_count(0, timeout=60_000)
    page.fill("#f-seed", "")
    page.fill("#f-num_inference_steps", "200")
    if is_phone:
        page.locator("#settings > summary").click()
    page.fill("#f-prompt", "a green three on white")
    page.click("#generate")
    expect(page.locator(".card-says").first).to_have_text(re.compile(r"Step 1[23]\d of.*"), timeout=60_000)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=str(folder / f"page-{width}.png"))
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for window in WINDOWS:
            record(browser, arguments.url, window, arguments.output)
        browser.close()


if __name__ == "__main__":
    main()
