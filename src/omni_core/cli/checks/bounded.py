"""Running a check that may hang or break, so that the others are heard all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from omni_core.cli.checks.finding import Finding

# The first import of torch from a slow disk takes this long; what takes longer hangs.
SECONDS_PER_CHECK = 60.0
# All checks together; each has at least the least of them.
SECONDS_IN_ALL = 120.0
LEAST_SECONDS = 5.0


def run_bounded(name: str, check: Callable[[], Iterable[Finding]], seconds: float) -> Iterator[Finding]:
    """Run a check and return what it found, or that it raised or did not end.

    It runs in a thread of its own, since nothing else can be left behind: an import that waits for a lock, a folder on
    a file server that is gone.

    Args:
        name: What it looks at.
        check: The check.
        seconds: How long to wait for it.
    """
    findings: list[Finding] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            for finding in check():
                findings.append(finding)  # one by one, so that those before a hang are kept
        except BaseException as error:  # a user's module, imported here, may call sys.exit()
            raised.append(error)

    thread = threading.Thread(target=run, name=f"doctor-{name}", daemon=True)
    thread.start()
    thread.join(seconds)
    yield from list(findings)
    if thread.is_alive():
        yield Finding(
            name,
            "problem",
            f"looking at it did not end within {seconds:.0f} s",
            "A module that waits while it is imported, or a file server that does not answer: see what is found above, "
            "and `py-spy dump --pid` of a process that hangs",
        )
    elif raised:
        error = raised[0]
        yield Finding(
            name,
            "problem",
            f"looking at it raised {type(error).__name__}: {error}",
            f"Correct what raises it, at {_where(error)}",
        )


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}" if trace is not None else ""
