"""An animated SVG of a terminal: plain text and one CSS animation, so that it plays where pictures are shown.

The frames stand side by side, like those of a film, and the animation moves the film past a window, one frame at a
time. Lines that many frames share are written once.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from xml.sax.saxutils import escape, quoteattr

FONT_SIZE = 14
CHARACTER = 8.4  # width of a character: most monospaced fonts have 0.6 of their size
LINE = 19
PADDING = 16
BAR = 30  # the title bar of the window
Thing = TypeVar("Thing", "tuple[Run, ...]", "Picture")
BACKGROUND, FOREGROUND, FRAME = "#16181d", "#d7dae0", "#2a2e37"


@dataclass(frozen=True)
class Run:
    """Characters of one line that look the same.

    Attributes:
        column: Where they begin.
        text: What they say.
        colour: As CSS writes it.
        bold: Whether they are bold.
    """

    column: int
    text: str
    colour: str = FOREGROUND
    bold: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture in the terminal.

    Attributes:
        png: The file.
        row: The line at which it begins.
        column: The column.
        rows: How many lines it is high, and as wide as that.
    """

    png: bytes
    row: int
    column: int
    rows: int


@dataclass(frozen=True)
class Frame:
    """What the terminal shows for a while.

    Attributes:
        seconds: How long.
        lines: The runs of each line.
        pictures: What is shown besides.
    """

    seconds: float
    lines: tuple[tuple[Run, ...], ...]
    pictures: tuple[Picture, ...] = ()


def write_svg(frames: Sequence[Frame], columns: int, rows: int, title: str, still: int = -1) -> str:
    """Return the film as SVG.

    Args:
        frames: What it shows, again and again.
        columns: Width of the terminal in characters.
        rows: Its height in lines.
        title: What stands in the title bar, and is read out to who does not see it.
        still: Index of the frame for those who see no animation.
    """
    width, height = round(columns * CHARACTER) + 2 * PADDING, rows * LINE + 2 * PADDING + BAR
    names: dict[object, str] = {}
    definitions: list[str] = []
    film: list[str] = []
    for index, frame in enumerate(frames):
        uses: list[str] = []
        for row, line in enumerate(frame.lines):
            if line:
                uses.append(_use(_name(line, names, definitions, _text), y=row * LINE))
        for picture in frame.pictures:
            name = _name(picture, names, definitions, _image)
            uses.append(_use(name, x=round(picture.column * CHARACTER), y=picture.row * LINE))
        film.append(f'<g transform="translate({index * width})">{"".join(uses)}</g>')
    lights = "".join(
        f'<circle cx="{PADDING + 4 + 18 * index}" cy="{BAR // 2}" r="5.5" fill="{colour}"/>'
        for index, colour in enumerate(("#f0625d", "#f4bd4f", "#5fc454"))
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label={quoteattr(title)}>',
            f"<title>{escape(title)}</title>",
            f"<style>{_style(frames, width, still % len(frames))}</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>',
            f'<path d="M0 {BAR}V8a8 8 0 0 1 8-8H{width - 8}a8 8 0 0 1 8 8V{BAR}z" fill="{FRAME}"/>{lights}',
            f'<text x="{width // 2}" y="{BAR // 2 + 5}" text-anchor="middle" style="fill:#9aa0ac">'
            f"{escape(title)}</text>",
            f"<defs>{''.join(definitions)}</defs>",
            f'<svg x="{PADDING}" y="{BAR + PADDING}" width="{width - 2 * PADDING}" height="{height - BAR - PADDING}" '
            f'overflow="hidden"><g class="film">',
            *film,
            "</g></svg>",
            "</svg>\n",
        ]
    )


def _style(frames: Sequence[Frame], width: int, still: int) -> str:
    total = sum(frame.seconds for frame in frames)
    steps, passed = [], 0.0
    for index, frame in enumerate(frames):
        steps.append(f"{100 * passed / total:.3f}%{{transform:translateX(-{index * width}px)}}")
        passed += frame.seconds
    return (
        f"text{{font:{FONT_SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',"
        f"monospace;white-space:pre;fill:{FOREGROUND}}}.b{{font-weight:bold}}image{{image-rendering:auto}}"
        f".film{{transform:translateX(-{still * width}px);animation:film {total:.2f}s steps(1,end) infinite}}"
        f"@keyframes film{{{''.join(steps)}100%{{transform:translateX(-{(len(frames) - 1) * width}px)}}}}"
        "@media (prefers-reduced-motion:reduce){.film{animation:none}}"
    )


def _name(thing: Thing, names: dict[object, str], definitions: list[str], write: Callable[[Thing, str], str]) -> str:
    if thing not in names:
        names[thing] = f"d{len(names)}"
        definitions.append(write(thing, names[thing]))
    return names[thing]


def _use(name: str, x: int = 0, y: int = 0) -> str:
    return f'<use href="#{name}"{f" x={quoteattr(str(x))}" if x else ""}{f" y={quoteattr(str(y))}" if y else ""}/>'


def _text(line: tuple[Run, ...], name: str) -> str:
    spans = []
    for run in line:
        colour = f' fill="{run.colour}"' if run.colour != FOREGROUND else ""
        bold = ' class="b"' if run.bold else ""
        length = f' textLength="{len(run.text) * CHARACTER:.1f}"' if len(run.text) > 1 else ""
        spans.append(f'<tspan x="{run.column * CHARACTER:.1f}"{length}{colour}{bold}>{escape(run.text)}</tspan>')
    return f'<text id="{name}" y="{FONT_SIZE}" xml:space="preserve">{"".join(spans)}</text>'


def _image(picture: Picture, name: str) -> str:
    side = picture.rows * LINE - 6
    data = base64.b64encode(picture.png).decode("ascii")
    return f'<image id="{name}" width="{side}" height="{side}" href="data:image/png;base64,{data}"/>'
