"""Makes docs/images/terminal.svg: what omni's own commands print, drawn by rich.

Run it with omni and its two executors installed: `python docs/images/record_terminal.py`.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

import omni_core

COMMANDS = (
    'omni generate "a red seven" "a blue two on yellow" "a cyan four" "a pink nine" --seed 32 --steps 100 -o pictures/',
    "omni plugins",
    "omni doctor --dtype float16",
)
COLUMNS = 120
_SECONDS_PER_COMMAND = 300.0


def run(words: Sequence[str], folder: Path) -> str:
    """Return what a command prints.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_")}
    environment |= {"COLUMNS": str(COLUMNS), "FORCE_COLOR": "1"}
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_SECONDS_PER_COMMAND,
        check=True,
    )
    # Of a line that was written over, as bars are, what a terminal shows in the end.
    lines = done.stdout.decode().rstrip("\n").split("\n")
    # Where omni lies on the machine that draws is nobody's concern.
    place = str(Path(omni_core.__file__).parents[1])
    return "\n".join(line.rpartition("\r")[2] for line in lines).replace(place, "…/site-packages")


def record(omni: Sequence[str], folder: Path) -> str:
    """Run the commands and return what a terminal shows as an SVG.

    Args:
        omni: The words that start omni.
        folder: Where they are run.
    """
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for command in COMMANDS:
        console.print(Text.assemble(("$ ", "bold green"), command))
        console.print(Text.from_ansi(run([*omni, *shlex.split(command)[1:]], folder)))
    # Without the fonts that it would fetch: the reader's own do.
    return re.sub(r"@font-face \{.*?\}|<!--.*?-->", "", console.export_svg(title="omni"), flags=re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Draw what omni's commands print as an SVG.")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "terminal.svg")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        svg = record([sys.executable, "-m", "omni_core"], Path(folder))
    options.output.write_text(svg, encoding="utf-8")
    print(f"{options.output}: {options.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
