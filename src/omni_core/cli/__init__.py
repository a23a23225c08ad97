"""The command line, `omni`. Each command is imported when it is run, so that `omni --help` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `omni` and exit with its code: see `omni_core.cli.exit_codes`.

    Args:
        arguments: The words after `omni`; None takes them from the command line.
    """
    import os
    import sys

    from omni_core.cli.app import make_app
    from omni_core.cli.streams import open_missing

    open_missing()
    # So that `--model module:factory` finds a module in the working directory; last, so that it hides no other.
    if os.getcwd() not in sys.path and "" not in sys.path:  # noqa: PTH109
        sys.path.append(os.getcwd())  # noqa: PTH109
    # Read by OpenMP when torch is loaded. By default its threads spin while they wait for each other, and on cores that
    # are busy with something else a picture took 40 times as long as with threads that sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    make_app().main(args=None if arguments is None else list(arguments), prog_name="omni")
    raise AssertionError("click's main returns only in tests")  # pragma: no cover
