"""Makes docs/images/terminal.svg: omni's own commands, run in a terminal and recorded.

Run it with omni and its two executors installed, and the terminal emulator pyte: `pip install 'pyte>=0.8'`, then
`python docs/images/record_terminal.py`. What the commands print is shown as it comes, with its real timing; only waits
in which nothing changes are cut to a second. The commands are typed by this program.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from animated_svg import FOREGROUND, Frame, Picture, Run, write_svg

COMMANDS = (
    'omni generate "a red seven" "a blue two on yellow" "a cyan four" "a pink nine" --seed 32 --steps 100 -o pictures/',
    "omni plugins",
    "omni doctor --dtype float16",
)
COLUMNS, ROWS = 120, 34
LONGEST_WAIT, SHORTEST_FRAME = 1.0, 0.08
SECONDS_TO_READ = 4.0
PICTURE_ROWS = 10
_SECONDS_PER_COMMAND = 300.0
_COLOURS = {
    "default": FOREGROUND,
    "black": "#5c6370",
    "red": "#f0726a",
    "green": "#8cc570",
    "brown": "#e2b85f",
    "blue": "#6ab0f3",
    "magenta": "#d08be0",
    "cyan": "#5bc0c8",
    "white": "#f2f4f8",
}


def run_in_terminal(words: Sequence[str], folder: Path) -> Iterator[tuple[float, bytes]]:
    """Run a command in a pseudo terminal and yield what it prints, with the seconds since its start.

    Raises:
        RuntimeError: It failed, or did not end in time.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    start = time.monotonic()
    with subprocess.Popen(
        words, stdin=its, stdout=its, stderr=its, cwd=folder, env=environment, start_new_session=True
    ) as process:
        os.close(its)
        try:
            while time.monotonic() - start < _SECONDS_PER_COMMAND:
                ready, _, _ = select.select([ours], [], [], 1.0)
                try:
                    data = os.read(ours, 65536) if ready else None
                except OSError:  # Linux says so when the other side is closed
                    data = b""
                if data == b"":
                    break
                if data:
                    yield time.monotonic() - start, data
            if process.wait(10) != 0:
                raise RuntimeError(f"{shlex.join(words)} ended with {process.returncode}")
        finally:
            os.close(ours)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


class Recorder:
    """Feeds a terminal and keeps what it shows, frame by frame.

    Attributes:
        frames: What was shown so far.
    """

    def __init__(self) -> None:
        import pyte

        self._screen: Any = pyte.Screen(COLUMNS, ROWS)
        self._stream: Any = pyte.ByteStream(self._screen)
        self.frames: list[Frame] = []

    def show(self, text: str, seconds: float, pictures: tuple[Picture, ...] = ()) -> None:
        """Print something and look at the screen for so long."""
        self._stream.feed(text.encode())
        self._keep(seconds, pictures)

    def type(self, command: str) -> None:
        """Show a command as it is typed, on a cleared screen."""
        self.show("\x1b[2J\x1b[H\x1b[32;1m$\x1b[0m ", 0.6)
        for word in command.split(" "):
            self.show(f"{word} ", 0.12)
        self.show("\r\n", 0.3)

    def follow(self, chunks: Iterator[tuple[float, bytes]]) -> None:
        """Show what a command prints, when it does."""
        shown_at = 0.0
        for now, data in chunks:
            if now - shown_at >= SHORTEST_FRAME:
                self._keep(min(now - shown_at, LONGEST_WAIT))
                shown_at = now
            self._stream.feed(data)
        self._keep(SHORTEST_FRAME)

    @property
    def row(self) -> int:
        """The line of the cursor."""
        return int(self._screen.cursor.y)

    def _keep(self, seconds: float, pictures: tuple[Picture, ...] = ()) -> None:
        lines = tuple(_runs(self._screen.buffer[row]) for row in range(ROWS))
        if self.frames and (self.frames[-1].lines, self.frames[-1].pictures) == (lines, pictures):
            seconds = min(self.frames[-1].seconds + seconds, max(LONGEST_WAIT, seconds))
            self.frames.pop()
        self.frames.append(Frame(round(seconds, 3), lines, pictures))


def _runs(line: Any) -> tuple[Run, ...]:
    runs: list[Run] = []
    for column in range(COLUMNS):
        cell = line[column]
        colour = _COLOURS.get(cell.fg) or f"#{cell.fg}"
        last = runs[-1] if runs else None
        if last is not None and (last.colour, last.bold) == (colour, cell.bold):
            runs[-1] = Run(last.column, last.text + cell.data, colour, cell.bold)
        else:
            runs.append(Run(column, cell.data, colour, cell.bold))
    stripped = (Run(run.column, run.text.rstrip(), run.colour, run.bold) for run in runs)
    return tuple(run for run in stripped if run.text)


def record(omni: Sequence[str], folder: Path) -> tuple[list[Frame], int]:
    """Run the commands.

    Args:
        omni: The words that start omni.
        folder: Where.

    Returns:
        The frames, and which of them shows the pictures.
    """
    recorder, still = Recorder(), 0
    for command in COMMANDS:
        recorder.type(command)
        recorder.follow(run_in_terminal([*omni, *shlex.split(command)[1:]], folder))
        files = sorted((folder / "pictures").glob("*.png"), key=lambda file: file.stat().st_mtime_ns)
        if "generate" in command:
            top = recorder.row + 1
            pictures = tuple(
                Picture(file.read_bytes(), top, index * (PICTURE_ROWS * 2 + 3), PICTURE_ROWS)
                for index, file in enumerate(files)
            )
            recorder.show("", SECONDS_TO_READ + 1, pictures)
            still = len(recorder.frames) - 1
        else:
            recorder.show("\x1b[32;1m$\x1b[0m ", SECONDS_TO_READ)
    return recorder.frames, still


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the recording."""
    parser = argparse.ArgumentParser(description="Record omni's commands in a terminal as an animated SVG.")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "terminal.svg")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        frames, still = record([sys.executable, "-m", "omni_core"], Path(folder))
    title = "omni generate, omni plugins and omni doctor in a terminal"
    options.output.write_text(write_svg(frames, COLUMNS, ROWS, title, still), encoding="utf-8")
    seconds = sum(frame.seconds for frame in frames)
    size = options.output.stat().st_size / 1000
    print(f"{options.output}: {len(frames)} frames, {seconds:.0f} s, {size:.0f} kB, still picture {still}")


if __name__ == "__main__":
    main()
