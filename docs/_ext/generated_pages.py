"""Puts what is generated from the code into the pages, where a line `<!-- generated: NAME -->` asks for it.

On GitHub such a line shows nothing, and the page around it stands for itself. Links that lead out of `docs/`, which
work there, are made to lead somewhere on the site.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cli_reference import cli_reference
from config_reference import config_reference, options_reference, request_reference

if TYPE_CHECKING:
    from sphinx.application import Sphinx

GENERATORS: dict[str, Callable[[], str]] = {
    "configuration": config_reference,
    "request": request_reference,
    "executor options": options_reference,
    "command line": cli_reference,
}
_DOCS = Path(__file__).parents[1]
_ROOT = _DOCS.parent
_LINE = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>(?!https?:|#)[^)#]+)(?P<anchor>#[^)]*)?\)")


def expand(text: str, folder: Path = _DOCS) -> str:
    """Return a page with what its lines ask for, and with links that work on the site.

    Args:
        text: The page.
        folder: The folder in which it lies.

    Raises:
        KeyError: One asks for what nobody generates.
    """

    def put(match: re.Match[str]) -> str:
        kind, _, file = match[1].partition("page ")
        if kind:
            return GENERATORS[match[1]]()
        page = _ROOT / file
        return _LINK.sub(lambda link: _site_link(link, page.parent, folder), page.read_text(encoding="utf-8"))

    return _LINE.sub(put, _LINK.sub(lambda link: _site_link(link, folder, folder), text))


def _site_link(link: re.Match[str], where: Path, folder: Path) -> str:
    """Return a link of a page in `where`, as it must be on a page of the site in `folder`."""
    target = (where / link["path"]).resolve()
    if target.is_relative_to(_DOCS) and where == folder:
        return link[0]
    plugin = next(
        (one for one in (_DOCS / "plugins").glob("*.md") if target.is_relative_to(_ROOT / "plugins" / one.stem)), None
    )
    if plugin is not None and (target.is_dir() or target.name == "README.md"):
        return f"[{link['text']}]({os.path.relpath(plugin, folder)})"
    if target.is_relative_to(_DOCS):
        return f"[{link['text']}]({os.path.relpath(target, folder)}{link['anchor'] or ''})"
    if target.is_dir():
        target /= "README.md"
    text = link["text"].replace("`", "")
    return f"{{download}}`{text} <{os.path.relpath(target, folder)}>`"


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx expand each page that it reads."""
    app.connect("source-read", _expand_page)
    app.connect("env-get-outdated", _find_outdated)
    return {"parallel_read_safe": True}


def _expand_page(app: Sphinx, name: str, content: list[str]) -> None:
    content[0] = expand(content[0], Path(app.env.doc2path(name)).parent)


def _find_outdated(
    app: Sphinx, _environment: object, _added: set[str], _changed: set[str], _removed: set[str]
) -> list[str]:
    # The code may have changed since the page was built, though the page has not.
    found: set[str] = app.project.docnames
    return [name for name in found if _LINE.search(Path(app.env.doc2path(name)).read_text(encoding="utf-8"))]
