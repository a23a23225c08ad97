"""Showing how far requests are: bars on a terminal, lines anywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from omni_core.cli.streams import say

if TYPE_CHECKING:
    from rich.progress import TaskID

# A request that shows no progress in lines for so long gets one, so that nobody takes it for dead.
_SECONDS_BETWEEN_LINES = 10.0
_LONGEST_LABEL = 40


class Reporter(Protocol):
    """What is told of the way of the requests, by their index."""

    def started(self, index: int) -> None:
        """Say that a worker began with a request."""

    def step(self, index: int, step: int, num_steps: int) -> None:
        """Say that `step` of `num_steps` (0: not known) steps are done."""

    def ended(self, index: int) -> None:
        """Say that nothing more comes of a request."""

    def say(self, line: str, err: bool = False) -> None:
        """Print a line without disturbing what is shown; with `err` even if nothing is."""

    def close(self) -> None:
        """Leave the terminal as it was. May be repeated."""


class SilentReporter:
    """Shows nothing but errors."""

    def started(self, index: int) -> None:
        """Show nothing."""

    def step(self, index: int, step: int, num_steps: int) -> None:
        """Show nothing."""

    def ended(self, index: int) -> None:
        """Show nothing."""

    def say(self, line: str, err: bool = False) -> None:
        """Print errors alone."""
        if err:
            say(line)

    def close(self) -> None:
        """Do nothing."""


class LineReporter(SilentReporter):
    """Writes a line when a request starts and at each further quarter of its steps."""

    def __init__(self, labels: Sequence[str]) -> None:
        count = len(labels)
        self._labels = [f"[{number}/{count}] {label}" for number, label in enumerate(labels, 1)]
        self._quarters: dict[int, int] = {}
        self._last: dict[int, float] = {}

    def started(self, index: int) -> None:
        """Write a line."""
        self._write(index, "started")

    def step(self, index: int, step: int, num_steps: int) -> None:
        """Write a line if there is something new to say."""
        quarter = step * 4 // num_steps if num_steps else 0
        long_ago = time.monotonic() - self._last.get(index, 0.0) > _SECONDS_BETWEEN_LINES
        if quarter != self._quarters.get(index, 0) or long_ago:
            self._quarters[index] = quarter
            self._write(index, f"step {step} of {num_steps}" if num_steps else f"step {step}")

    def say(self, line: str, err: bool = False) -> None:
        """Write the line."""
        say(line)

    def _write(self, index: int, what: str) -> None:
        self._last[index] = time.monotonic()
        say(f"{self._labels[index]}: {what}")


class BarReporter:
    """Draws a bar for each request that runs, and one for the whole if there are several."""

    def __init__(self, labels: Sequence[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._labels = labels
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True, highlight=False),
            transient=True,
            # Redirected, lines for a pipe on standard output would end on the terminal.
            redirect_stdout=False,
        )
        self._bars: dict[int, TaskID] = {}
        self._progress.start()
        self._whole = self._progress.add_task("all", total=len(labels)) if len(labels) > 1 else None

    def started(self, index: int) -> None:
        """Draw a bar."""
        if index not in self._bars:
            self._bars[index] = self._progress.add_task(self._labels[index], total=None)

    def step(self, index: int, step: int, num_steps: int) -> None:
        """Move the bar."""
        self.started(index)
        self._progress.update(self._bars[index], completed=step, total=num_steps or None)

    def ended(self, index: int) -> None:
        """Take the bar away."""
        bar = self._bars.pop(index, None)
        if bar is not None:
            self._progress.remove_task(bar)
        if self._whole is not None:
            self._progress.advance(self._whole)

    def say(self, line: str, err: bool = False) -> None:
        """Print the line above the bars."""
        with contextlib.suppress(OSError):  # the terminal is gone
            self._progress.console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bars away and show the cursor again."""
        with contextlib.suppress(OSError):
            self._progress.stop()


def make_reporter(prompts: Sequence[str | None], quiet: bool) -> Reporter:
    """Return what fits the terminal, or the lack of one."""
    if quiet:
        return SilentReporter()
    labels = [label_of(prompt) for prompt in prompts]
    return BarReporter(labels) if sys.stderr.isatty() else LineReporter(labels)


def label_of(prompt: str | None) -> str:
    """Return a prompt as a short name of its request, in one line."""
    text = " ".join((prompt or "").split()) or "(no prompt)"
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"


def describe_metrics(metrics: Any) -> str:
    """Return in a few words where the time of a request went."""
    return f"{metrics.num_steps} steps in {metrics.total_s - metrics.queue_s:.1f} s"
