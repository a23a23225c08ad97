"""What the documentation consists of: its pages, and the code blocks, links and names on them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "plugins").glob("*/README.md"))]
PAGES.append(ROOT / "deploy" / "README.md")

# Headings of table columns that hold what is called so elsewhere.
OTHER_PROJECTS = {"vLLM-Omni", "SGLang"}
_MARKER = re.compile(r"<!--\s*(file:\s*(?P<file>\S+)|run|continued|nightly)\s*-->")


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        page: The file that it stands in.
        line: Where it begins there.
        language: What stands after the fence.
        text: The code.
        file: Name under which it is to be written, from a line `<!-- file: NAME -->` before it.
        continues: Whether it belongs to the Python block before it, by a line `<!-- continued -->`.
        by_night: Whether it takes long and is run by night alone, by a line `<!-- nightly -->`.
    """

    page: Path
    line: int
    language: str
    text: str
    file: str | None = None
    continues: bool = False
    by_night: bool = False

    @property
    def where(self) -> str:
        """Page and line, for messages and names of tests."""
        return f"{page_name(self.page)}:{self.line}"


def page_name(page: Path) -> str:
    """Return what a page is called in the names of tests."""
    return page.relative_to(ROOT).as_posix().removesuffix(".md").replace("docs/", "")


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order; those that continue another are joined to it."""
    blocks: list[Block] = []
    marker: re.Match[str] | None = None
    for token in _tokens(page):
        if token.type == "html_block":
            marker = _MARKER.search(token.content)
        elif token.type == "fence":
            line = (token.map or [0])[0] + 1
            block = Block(page, line, token.info.strip(), token.content, *_meaning(marker))
            if block.continues:
                first = blocks.pop()
                if (first.language, first.file, block.language) != ("python", None, "python"):
                    raise ValueError(f"{block.where} continues what is no Python block to be run")
                block = dataclasses.replace(first, text=f"{first.text}\n{block.text}")
            blocks.append(block)
            marker = None
        elif token.type not in ("list_item_open", "list_item_close"):
            marker = None
    return blocks


def _meaning(marker: re.Match[str] | None) -> tuple[str | None, bool, bool]:
    if marker is None:
        return None, False, False
    return marker["file"], "continued" in marker[0], "nightly" in marker[0]


def links_of(page: Path) -> Iterator[str]:
    """Yield where the links and pictures of a page lead."""
    for token in _inline(page):
        for attribute in ("href", "src"):
            target = token.attrGet(attribute)
            if isinstance(target, str):
                yield target


def code_of(page: Path) -> Iterator[str]:
    """Yield each `inline code` of a page, but for table columns with the names of another project."""
    column, foreign = -1, -1
    for token in _tokens(page):
        if token.type in ("table_open", "tr_open"):
            column, foreign = -1, -1 if token.type == "table_open" else foreign
        elif token.type in ("th_open", "td_open"):
            column += 1
        elif token.content in OTHER_PROJECTS and column >= 0:
            foreign = column
        elif column < 0 or column != foreign:
            yield from (child.content for child in token.children or () if child.type == "code_inline")
        if token.type == "table_close":
            column = -1


def headings_of(page: Path) -> set[str]:
    """Return the anchors that the headings of a page have on GitHub and on the site."""
    tokens = _tokens(page)
    texts = [tokens[index + 1].content for index, token in enumerate(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def _inline(page: Path) -> Iterator[Token]:
    for token in _tokens(page):
        yield from token.children or ()
