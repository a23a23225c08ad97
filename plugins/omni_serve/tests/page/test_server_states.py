"""The page when the server asks for a key, is full, or is gone."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import expect

from omni_core.testing.warm_python import WarmPython
from serving import FACTORIES, process_server

from .conftest import OpenPage

MODEL = ("--model", f"{FACTORIES}:picture")
LONG = 20_000
SMALL = {"width": 16, "height": 16, "max_sequence_length": 16}


def test_a_key_is_asked_for_and_a_full_server_says_when(
    open_page: OpenPage, warm_python: WarmPython, tmp_path: Path
) -> None:
    few = ("--max-num-seqs", "1", "--max-waiting", "1")
    with process_server(
        tmp_path, *MODEL, *few, python=warm_python.command(), OMNI_SERVE_API_KEY="abcdefgh12345678abcdefgh12345678"
    ) as running:
        watched = open_page(running.url, ready=False)
        watched.may_fail += ["status of 401", "status of 429"]
        page = watched.page
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#api-key-says")).to_have_text("The API key is not valid.")
        page.get_by_label("API key").fill("abcdefgh12345678abcdefgh12345678")
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-ready]")
        page.locator("#more > summary").click()
        watched.fill(**SMALL)
        for number in range(3):
            watched.generate(f"a boat {number}", num_inference_steps=LONG)
            expect(watched.cards("busy" if number == 2 else "running" if number == 0 else "queued")).to_have_count(1)
        expect(watched.cards("queued").locator(".card-says")).to_contain_text("Next in line · done in about")
        expect(watched.cards("busy").locator(".card-says")).to_have_text(
            re.compile(r"The server is full\. Trying again in \d+ s")
        )
        expect(page.locator("#pill-text")).to_have_text("1 running, 1 waiting")
        with page.expect_response("**/v1/images/generations") as answer:
            page.get_by_role("button", name="Try now").click()
        assert answer.value.status == 429
        expect(watched.cards("busy")).to_have_count(1)
        watched.cards("queued").get_by_role("button", name="Stop").click()
        # There is room, sooner than was said.
        expect(watched.cards("queued")).to_contain_text("a boat 2")
        page.get_by_role("button", name="Stop all").click()
        expect(watched.cards("stopped")).to_have_count(3)


def test_a_server_that_is_gone_and_comes_back(open_page: OpenPage, warm_python: WarmPython, tmp_path: Path) -> None:
    python = warm_python.command()
    with process_server(tmp_path, *MODEL, "--drain-timeout-s", "0", python=python) as running:
        url = running.url
        watched = open_page(url)
        watched.may_fail += [
            "ERR_CONNECTION_REFUSED",
            "ERR_INCOMPLETE_CHUNKED",
            "ERR_CONNECTION_RESET",
            "ERR_EMPTY",
            "status of 503",
        ]
        page = watched.page
        page.locator("#more > summary").click()
        watched.generate("a boat", num_inference_steps=LONG, **SMALL)
        expect(watched.cards("running")).to_have_count(1)
        running.signal(signal.SIGTERM)
        running.wait()
        expect(page.locator("#banner")).to_contain_text("The server is gone.")
        expect(page.locator("#pill-text")).to_have_text("Not reachable")
        expect(watched.cards("failed")).to_have_count(1)
        watched.generate("another boat")
        expect(watched.cards("failed")).to_have_count(2)
    with process_server(tmp_path, *MODEL, "--port", str(urlsplit(url).port), python=python):
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator("#pill-text")).to_have_text("Ready")
        watched.fill(num_inference_steps=4)
        page.keyboard.press("Control+Enter")
        watched.wait_until_done(1)
