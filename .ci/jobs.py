"""Running commands of several environments side by side, each reported when it has ended."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from environments import ROOT, Environment, make

# One thread per forward: more than the cores is ruinous, and results repeat to the bit.
VARIABLES = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
DROPPED = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTEST_ADDOPTS", "VIRTUAL_ENV")
AT_A_TIME = 2
# Commands that are no modules.
PROGRAMS = ("ruff", "lint-imports")


@dataclass(frozen=True)
class Job:
    """Commands that are run one after the other.

    Attributes:
        name: What it is called in the report.
        environment: What Python runs them.
        commands: Modules to run as `python -m` does, or some of PROGRAMS, with their arguments.
        folder: The working directory.
    """

    name: str
    environment: Environment
    commands: tuple[tuple[str, ...], ...]
    folder: str = "."


@dataclass
class Report:
    """What has become of the jobs so far."""

    failed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    _printing: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, is_right: bool, seconds: float, said: str) -> None:
        """Take note of a job that has ended, and print what it said."""
        with self._printing:
            self.seconds[name] = seconds
            if not is_right:
                self.failed.append(name)
            sys.stdout.write(f"\n===== {name}: {'passed' if is_right else 'FAILED'} after {seconds:.0f} s\n{said}")
            sys.stdout.flush()


def run_all(jobs: Sequence[Job], alone: Sequence[Job] = (), arguments: Sequence[str] = ()) -> Report:
    """Run jobs, the first ones first, `AT_A_TIME` at a time; then others, one by one.

    Args:
        jobs: What to run.
        alone: What to run when nothing else is.
        arguments: Further arguments for pytest.
    """
    report = Report()
    making = {job.environment.name: threading.Lock() for job in (*jobs, *alone)}
    made: set[str] = set()
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def run(job: Job) -> None:
        begun = time.monotonic()
        try:
            with making[job.environment.name]:
                if job.environment.name not in made:
                    make(job.environment)
                    made.add(job.environment.name)
            is_right, said = _execute(job, arguments)
        except subprocess.CalledProcessError as error:
            is_right, said = False, f"{error.output}\n{error}\n"
        except Exception as error:  # a thread that ends without a word would pass for a job that passed
            is_right, said = False, f"{type(error).__name__}: {error}\n"
        report.add(job.name, is_right, time.monotonic() - begun, said)

    def work() -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            run(job)

    workers = [threading.Thread(target=work) for _ in range(AT_A_TIME)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for job in alone:
        run(job)
    return report


def _execute(job: Job, arguments: Sequence[str]) -> tuple[bool, str]:
    """Run the commands of a job until one fails; return whether none did, and what they printed."""
    environment = {name: value for name, value in os.environ.items() if name not in DROPPED} | VARIABLES
    programs = job.environment.python.parent
    environment["PATH"] = os.pathsep.join([str(programs), environment["PATH"]])
    said = ""
    for module, *rest in job.commands:
        is_pytest = module == "pytest"
        start = [str(programs / module)] if module in PROGRAMS else [str(job.environment.python), "-m", module]
        done = subprocess.run(
            [*start, *rest, *(arguments if is_pytest else ())],
            cwd=ROOT / job.folder,
            env=environment,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said += f"$ {module} {' '.join(rest)}\n{done.stdout}"
        if done.returncode:
            return False, said
    return True, said
