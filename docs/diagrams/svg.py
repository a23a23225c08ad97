"""As much of SVG as the diagrams need: boxes, lines and text, readable on a light and on a dark page."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

_STYLE = """
    .page { fill: #ffffff } .box { fill: #eef3f8; stroke: #5b7083 } .band { fill: #f5f7f9; stroke: none }
    .hot { fill: #fbe3e1; stroke: #b3261e } text { fill: #1c2733; font: 12px sans-serif }
    text.code { font-family: monospace; font-size: 11.5px } text.strong { font-weight: bold }
    text.faint { fill: #5b6b7a }
    line { stroke: #5b7083 } line.life { stroke: #c3ccd5; stroke-dasharray: 2 4 } line.handed { stroke-dasharray: 6 4 }
    line.hot { stroke: #b3261e; stroke-width: 2 } .head { fill: #5b7083; stroke: none }
    .dot { fill: #1f6fb2; stroke: none }
    @media (prefers-color-scheme: dark) {
      .page { fill: #14191f } .box { fill: #22303d; stroke: #8ea3b5 } .band { fill: #1b222a } .hot { fill: #4a1f1c }
      text { fill: #e4eaf0 } text.faint { fill: #9aabba } line { stroke: #8ea3b5 } line.life { stroke: #3a4652 }
      .head { fill: #8ea3b5 } .dot { fill: #6cb3ee } line.hot { stroke: #f2857c }
    }
"""


class Svg:
    """A picture that is written when all is drawn.

    Args:
        width: Its width in pixels.
        title: What it shows, for those who cannot see it.
    """

    def __init__(self, width: int, title: str) -> None:
        self._width = width
        self._title = title
        self._parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, kind: str = "box") -> None:
        """Draw a rectangle; `kind` is box, band or hot."""
        corner = 0 if kind == "band" else 4
        self._parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{corner}"/>'
        )

    def text(self, x: float, y: float, text: str, kind: str = "", *, anchor: str = "start", name: str = "") -> None:
        """Write a line.

        Args:
            x: Where it begins, or its middle or end.
            y: Its base line.
            text: What to write.
            kind: Words of code, strong, faint.
            anchor: start, middle or end.
            name: Full name of what it names in the code, for the test that it exists.
        """
        data = f" data-name={quoteattr(name)}" if name else ""
        self._parts.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}"{data}>{escape(text)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "") -> None:
        """Draw a line; `kind` is life, handed or hot."""
        self._parts.append(f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>')

    def arrow(self, x1: float, x2: float, y: float, kind: str = "") -> None:
        """Draw a horizontal arrow from `x1` to `x2`."""
        back = 7 if x2 < x1 else -7
        self.line(x1, y, x2 + back, y, kind)
        self._parts.append(f'<path class="head" d="M{x2:g} {y:g} l{back} -3.5 v7 z"/>')

    def dot(self, x: float, y: float) -> None:
        """Draw a point in time."""
        self._parts.append(f'<circle class="dot" cx="{x:g}" cy="{y:g}" r="3.5"/>')

    def write(self, file: Path, height: float) -> None:
        """Write the picture, `height` pixels high."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self._width}" height="{height:g}" '
            f'viewBox="0 0 {self._width} {height:g}" role="img">'
        )
        page = f'<rect class="page" width="{self._width}" height="{height:g}"/>'
        lines = [
            head,
            f"<title>{escape(self._title)}</title>",
            f"<style>{_STYLE}</style>",
            page,
            *self._parts,
            "</svg>",
        ]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
