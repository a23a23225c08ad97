"""Programs that a warm Python runs behave as those that `python` runs, and none outlives its client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from omni_core.testing.bounds import wait_until
from omni_core.testing.warm_python import WarmPython

# What a program can find out about itself.
LOOK = """
import json, os, random, sys
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "env": dict(os.environ), "name": __name__, "stdin": sys.stdin.read(),
    "file": globals().get("__file__"), "main": sys.modules["__main__"].__dict__ is globals(), "path0": sys.path[0],
    "executable": sys.executable,
}))
print("told", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmPython]:
    with WarmPython("import fractions") as made:
        yield made


def both(warm: WarmPython, *arguments: str, **settings: object) -> list[subprocess.CompletedProcess[str]]:
    """Run a program by `python` and by the warm one."""
    return [
        subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False, **settings)  # type: ignore[call-overload]
        for command in ([sys.executable], warm.command())
    ]


@pytest.mark.parametrize("kind", ["-c", "script", "-m"])
def test_a_program_finds_the_same(warm: WarmPython, tmp_path: Path, kind: str) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    arguments = {"-c": ["-c", LOOK], "script": ["look.py"], "-m": ["-m", "look"]}[kind]
    environment = {**os.environ, "SOME": "thing ü", "PYTHONPATH": str(tmp_path / "more")}
    cold, found = both(warm, *arguments, "one", "two words", cwd=tmp_path, env=environment, input="said")
    assert (found.returncode, found.stderr) == (cold.returncode, cold.stderr) == (0, "told\n")
    known, seen = json.loads(cold.stdout), json.loads(found.stdout)
    assert seen.pop("env").items() >= {"SOME": "thing ü", "PYTHONPATH": str(tmp_path / "more")}.items()
    del known["env"]
    if kind == "-m":
        seen["argv"][0], seen["file"] = known["argv"][0], known["file"]  # relative or not
    assert seen == known


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(7)",
        "import sys; sys.exit('words')",
        "import os; os._exit(3)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import atexit; atexit.register(print, 'last'); print('first')",
        "import threading; threading.Timer(0.1, print, ['from a thread']).start()",
        "import sys; sys.stdout.write('no newline')",
        "import os, signal; signal.raise_signal(signal.SIGTERM)",
    ],
)
def test_a_program_ends_the_same(warm: WarmPython, code: str) -> None:
    cold, found = both(warm, "-c", code)
    assert (found.returncode, found.stdout, found.stderr) == (cold.returncode, cold.stdout, cold.stderr)


def test_an_error_ends_a_program(warm: WarmPython) -> None:
    _, found = both(warm, "-c", "1 / 0")
    assert found.returncode == 1
    assert found.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_modules_are_there_already_and_programs_share_nothing(warm: WarmPython) -> None:
    code = (
        "import random, sys; print('fractions' in sys.modules, hasattr(sys, 'seen')); sys.seen = 1\n"
        "print(random.random())"
    )
    first, second = both(warm, "-c", code)[1], both(warm, "-c", code)[1]
    assert first.stdout.startswith("True False\n")
    assert second.stdout.startswith("True False\n")
    assert first.stdout != second.stdout, "each draws its own random numbers"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_program(warm: WarmPython, number: signal.Signals) -> None:
    code = "import threading; print('runs', flush=True); threading.Event().wait(60)"
    with subprocess.Popen([*warm.command(), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"runs\n"
        client.send_signal(number)
        assert client.wait(20) == -number


def test_a_program_ends_with_its_client_and_with_the_warm_python() -> None:
    code = "import os, threading; print(os.getpid(), flush=True); threading.Event().wait(60)"
    with WarmPython() as warm:
        programs = []
        for _ in range(2):
            client = subprocess.Popen([*warm.command(), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            assert client.stdout is not None
            programs.append((client, int(client.stdout.readline())))
        (killed, first), (other, second) = programs
        killed.kill()
        wait_until(lambda: not psutil.pid_exists(first), "the program of a client that was killed has ended")
        assert psutil.pid_exists(second)
    wait_until(lambda: not psutil.pid_exists(second), "no program outlives the warm Python")
    assert other.wait(20) != 0
    for client in (killed, other):
        client.communicate(timeout=20)


def test_scripts_and_another_environment(warm: WarmPython, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    [packages] = (tmp_path / "env").glob("lib/python*/site-packages")
    (packages / "only_there.py").write_text("value = 5\n")
    python = str(tmp_path / "env" / "bin" / "python")
    warm.write_scripts(tmp_path / "bin", python)
    code = "import sys, only_there; print(sys.executable, only_there.value)"
    run = subprocess.run([tmp_path / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [python, "5"]
    run = subprocess.run([tmp_path / "bin" / "omni", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("omni ")
