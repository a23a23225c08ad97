"""Chromium, and pages whose console is watched."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
_PATIENCE_MS = 30_000
# Notes what cards have shown: each preview, and each line about progress.
_WATCH = """
window.seen = { previews: [], says: [], statuses: [] };
new MutationObserver(() => {
  const note = (list, value) => { if (value && !list.includes(value)) list.push(value); };
  for (const image of document.querySelectorAll("img.is-preview")) note(window.seen.previews, image.src);
  for (const line of document.querySelectorAll(".card-says")) note(window.seen.says, line.textContent);
  const counts = document.querySelectorAll(".card[data-status=running]").length;
  note(window.seen.statuses, `${counts} running`);
}).observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
"""


@dataclass
class Watched:
    """A page, with everything that has gone wrong in it.

    Attributes:
        page: The page.
        may_fail: What a test brings about, as regular expressions: refusals are lines in the console too.
    """

    page: Page
    may_fail: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Fail if anything has gone wrong."""
        left = [one for one in self.problems if not any(re.search(pattern, one) for pattern in self.may_fail)]
        assert not left, left

    def generate(self, prompt: str, **fields: int | str) -> None:
        """Fill in the form and press the button."""
        self.fill(prompt=prompt, **fields)
        self.page.get_by_role("button", name="Generate").click()

    def fill(self, **fields: int | str) -> None:
        """Fill in fields."""
        for name, value in fields.items():
            self.page.locator(f"#f-{name}").fill(str(value))

    def cards(self, status: str | None = None) -> Any:
        """Return the cards, or those of a status."""
        return self.page.locator(".card" if status is None else f".card[data-status={status}]")

    def wait_until_done(self, count: int) -> None:
        """Wait until so many cards are done, and none is being made."""
        expect(self.cards("done")).to_have_count(count)
        expect(self.page.locator(".card-bar:visible")).to_have_count(0)
        expect(self.page.locator(".card .shown:not(.is-preview)")).to_have_count(count)


OpenPage = Callable[..., Watched]


# Not for the session: playwright keeps an event loop running in this thread, where other tests have one of their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there: the page is tried with a real browser")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(_FLAGS))
        expect.set_options(timeout=_PATIENCE_MS)
        yield made
        made.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open a server's page in a browser of its own; afterwards nothing may have gone wrong in it."""
    with contextlib.ExitStack() as contexts:
        pages: list[Watched] = []

        def open_one(
            url: str, *, width: int = 1280, context: BrowserContext | None = None, ready: bool = True, **options: Any
        ) -> Watched:
            if context is None:
                is_phone = width < 500
                context = browser.new_context(
                    viewport={"width": width, "height": 844 if is_phone else 800},
                    is_mobile=is_phone,
                    has_touch=is_phone,
                    **options,
                )
                contexts.callback(context.close)
                context.set_default_timeout(_PATIENCE_MS)
                context.add_init_script(_WATCH)
            watched = _watch(context.new_page())
            pages.append(watched)
            watched.page.goto(url)
            if ready:
                watched.page.wait_for_selector("body[data-ready]")
            return watched

        yield open_one
        for watched in pages:
            watched.check()


def _watch(page: Page) -> Watched:
    watched = Watched(page)

    def note_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            watched.problems.append(f"{message.type}: {message.text} {message.location.get('url', '')}")

    def note_failure(request: Request) -> None:
        # Chromium says "aborted" of streams that were read to their end as well.
        if request.failure != "net::ERR_ABORTED":
            watched.problems.append(f"failed: {request.url} {request.failure}")

    page.on("console", note_console)
    page.on("pageerror", lambda error: watched.problems.append(f"raised: {error}"))
    page.on("requestfailed", note_failure)
    return watched
