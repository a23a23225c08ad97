"""Faults that one request brings with it, for the pipeline `omni_core.testing.pipelines:faulty`.

A test makes a fault with `fault(...)` and sends it in `extra_args={"fault": …}`; it happens in the worker, after the
given denoising step.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Literal

Kind = Literal["raise", "raise-unpicklable", "out-of-memory", "nan", "exit", "kill", "wait", "leave", "output"]
EXIT_CODE = 17
# Seconds after which a wait ends by itself, should nobody end it.
MOST_WAIT_S = 60.0


class InjectedError(Exception):
    """What a request with the fault `raise` raises."""


class UnpicklableError(Exception):
    """An exception that does not survive pickling: it takes two arguments, and holds a lock."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} because {why}")
        self.lock = threading.Lock()


def fault(
    kind: Kind, *, step: int = 2, once: Path | None = None, file: Path | None = None, what: str = ""
) -> dict[str, Any]:
    """Return a fault to put into a request.

    Args:
        kind: What shall happen. `exit` and `kill` end the process, unless it is the one that calls this function.
        step: After which denoising step, from 1.
        once: A file that does not exist yet: the fault happens only the first time.
        file: For `wait`: how long, namely until this file exists, or `MOST_WAIT_S` have passed.
        what: For `leave`: which of `left_behind.CHANGES` is made. For `output`: which of `odd_values.ODD_VALUES` is
            returned besides the pictures; `step` does not count there.
    """
    return {
        "kind": kind,
        "step": step,
        "once": None if once is None else str(once),
        "file": None if file is None else str(file),
        "what": what,
        "spared_pid": os.getpid(),
    }


def begun_file(file: str | Path) -> Path:
    """Return the file that says that a `wait` for `file` has begun."""
    return Path(f"{file}.begun")


def wait_for_file(file: str | Path, most_s: float = MOST_WAIT_S) -> bool:
    """Wait until a file exists; return whether it does."""
    path, deadline, tick = Path(file), time.monotonic() + most_s, threading.Event()
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        tick.wait(0.005)
    return True


def end_process(kind: Literal["exit", "kill"], spared_pid: int) -> None:
    """End this process without a word.

    Raises:
        RuntimeError: It is the one that must live on: that of the tests.
    """
    if os.getpid() == spared_pid:
        raise RuntimeError(f"the fault {kind!r} would end the process of the tests")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(EXIT_CODE)


def with_fault(output: Any, plan: dict[str, Any]) -> Any:
    """Return the output of a pipeline, with what the fault `output` puts into it."""
    if plan["kind"] == "output":
        from omni_core.testing.odd_values import ODD_VALUES

        output["note"] = ODD_VALUES[plan["what"]]()
    return output


class Fault:
    """Makes a fault happen; given to a stock pipeline as `callback_on_step_end`."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan

    def __call__(self, pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Let it happen, if this is the step."""
        if self._plan["kind"] == "output" or step + 1 != self._plan["step"] or not self._is_first_time():
            return {}
        kind = self._plan["kind"]
        if kind == "raise":
            raise InjectedError(f"injected at step {step + 1}")
        if kind == "raise-unpicklable":
            raise UnpicklableError("injected", f"it is step {step + 1}")
        if kind == "out-of-memory":
            import torch

            raise torch.OutOfMemoryError("out of memory (injected)")
        if kind == "nan":
            return {"latents": values["latents"] * float("nan")}
        if kind == "leave":
            from omni_core.testing.left_behind import CHANGES

            CHANGES[self._plan["what"]]()
        elif kind == "wait":
            begun_file(self._plan["file"]).touch()
            wait_for_file(self._plan["file"])
        else:
            end_process(kind, self._plan["spared_pid"])
        return {}

    def _is_first_time(self) -> bool:
        if self._plan["once"] is None:
            return True
        try:
            Path(self._plan["once"]).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
