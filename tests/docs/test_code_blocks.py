"""Every code block of the documentation runs as it stands.

The blocks of a page share one empty folder, in their order. A Python block is a process of its own, forked from one
that has imported torch; with --nightly, an interpreter of its own. The lines of a shell block are run there; a block
after a line `<!-- file: NAME -->` is written to that file instead; one after `<!-- continued -->` goes on in the
process of the Python block before it. One after `<!-- nightly -->` takes long, and is run with --nightly alone.

A line that begins with `omni serve` starts a server, as in a terminal of its own. It runs beside the blocks that
follow, until the next such line or the end of the page, on a port that is free: the others' `:8000` becomes that.

Not by sybil or pytest-markdown-docs: those run Python in the process of the tests. Most blocks here are commands, or
programs that must work as a user starts them.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

from docs.page_folder import BLOCK_TIMEOUT_S, PageFolder
from docs.pages import PAGES, Block, blocks_of, page_name
from omni_core import OmniDiffusionConfig

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
CASES = [
    pytest.param(block, id=f"{block.where}-{block.language}", marks=[pytest.mark.nightly] if block.by_night else [])
    for block in BLOCKS
]


@pytest.fixture(scope="module")
def page_folders(tmp_path_factory, request) -> Iterator[dict[Path, PageFolder]]:
    """One folder for each page, for as long as its blocks are run."""
    warm = None if request.config.getoption("--nightly") else request.getfixturevalue("warm_python")
    folders = {
        page: PageFolder(
            tmp_path_factory.mktemp(page_name(page).replace("/", "-")),
            tmp_path_factory.mktemp("env") / "environment",
            warm,
        )
        for page in PAGES
    }
    with contextlib.ExitStack() as ends:
        for folder in folders.values():
            ends.callback(folder.close)
        yield folders


@pytest.mark.timeout(BLOCK_TIMEOUT_S + 60)
@pytest.mark.parametrize("block", CASES)
def test_block(block: Block, page_folders: dict[Path, PageFolder], tmp_path: Path) -> None:
    folder = page_folders[block.page]
    for other in page_folders.values():
        if other is not folder:
            other.close()
    if block.file is not None:
        folder.write(block)
    match block.language:
        case "python" if block.file is not None:
            ast.parse(block.text, block.where)
        case "python":
            folder.run_python(block)
        case "sh" if block.file is None:
            folder.run_shell(block)
        case "console":
            folder.run_console(block)
        case "toml":
            load_toml(block, tmp_path / "omni.toml")
        case "json":
            json.loads(block.text)
        case "text":
            pass  # shows something: a folder, a message
        case _ if block.file is not None and block.language in ("markdown", "yaml", "ini", "sh"):
            pass  # a file for the commands that follow
        case _ if block.language.startswith("{"):
            pass  # for the site's generator, which complains if it does not know it
        case _:
            pytest.fail(f"{block.where}: nothing runs a block of the language {block.language!r}")


def load_toml(block: Block, file: Path) -> None:
    """Load a configuration as one; other TOML is that of a distribution."""
    table = tomllib.loads(block.text)
    if {"project", "build-system"} & set(table):
        assert table["project"]["name"]
        return
    file.write_text(block.text, encoding="utf-8")
    config = OmniDiffusionConfig.from_file(file)
    assert set(table) <= {name for name, source in config.sources().items() if source.startswith("file ")}


def test_every_page_is_here() -> None:
    assert len(PAGES) >= 10
    assert {block.language for block in BLOCKS} >= {"python", "sh", "toml"}
