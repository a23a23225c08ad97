"""Processes that omni starts have what they need, under whatever circumstances the program runs."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.spawn
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from omni_core.errors import StartupError
from omni_core.wire.start import find_interpreter, start_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

PROGRAM = """
import json, os, signal, sys
from pathlib import Path
SITUATION
from omni_core.wire.start import occupy_standard_files, start_python
occupy_standard_files()  # as whatever has a reactor does
read, write = os.pipe()
process = start_python("start_calls:tell", (write, "a", 1), fds=(write,), output=OUTPUT)
os.close(write)
with os.fdopen(read) as file:
    told = file.read()
status = process.wait(60.0)
Path(sys.argv[1]).write_text(json.dumps({
    "told": json.loads(told), "status": status, "path": [entry for entry in sys.path if isinstance(entry, str)],
    "environment": dict(os.environ), "ignores SIGCHLD": signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN,
}))
"""
LONG = "sys.path += [f'/nowhere/{number}/' + 'long' * 50 for number in range(1200)]"
SITUATIONS: dict[str, str] = {
    "nothing special": "",
    "a Path in sys.path": "sys.path[:0] = [Path('/somewhere')]",
    "things in sys.path": "sys.path[:0] = [b'/bytes', None, 3, object()]",
    "1200 long entries": LONG,
    "relative entries": "sys.path[:0] = ['', '.', 'sub/folder', 'library.zip']",
    "odd names in sys.path": "sys.path += ['/a:b', \"/it's\", '/\\n', '/\\udcff', '/ü']",
    "a long variable": "os.environ['LONG'] = 'x' * 300_000",
    "many variables": "os.environ.update({f'MANY_{number}': 'x' * 1000 for number in range(5000)})",
    "odd variables": "os.environ['ODD'] = '\\udcff\\n='",
    "PYTHONPATH": "os.environ['PYTHONPATH'] = '/elsewhere'; sys.path.append('/elsewhere')",
    "PYTHONSAFEPATH": "os.environ['PYTHONSAFEPATH'] = '1'",
    "PYTHONWARNINGS": "os.environ['PYTHONWARNINGS'] = 'error'",
    "no sys.argv": "FILE = sys.argv[1]; del sys.argv",
    "odd sys.argv": "sys.argv[0:1] = [b'bytes'] ; sys.argv[0] = None",
    "SIGCHLD is ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "SIGTERM is ignored": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "all signals are blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "no standard input": "os.close(0)",
    "no standard output": "os.close(1)",
    "no standard error": "os.close(2)",
    "no standard files": "os.closerange(0, 3)",
    "TMPDIR cannot be written to": "os.environ['TMPDIR'] = '/proc/1'",
    "umask 777": "os.umask(0o777)",
    "the working directory is gone": "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')",
    "another json.py is here": "Path('json.py').write_text('raise SystemExit(9)')",
    "few files": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))",
    "locale C": "os.environ['LC_ALL'] = 'C'",
    "a small stack": "import resource; resource.setrlimit(resource.RLIMIT_STACK, (262144, 262144))",
}


def run(folder: Path, situation: str, *flags: str, output: str = "None", **options: Any) -> dict[str, Any]:
    code = PROGRAM.replace("SITUATION", situation).replace("OUTPUT", output)
    if "FILE =" in situation:
        code = code.replace("sys.argv[1]).write", "FILE).write")
    # Found by the program's `sys.path`, of which -S and -I leave something out.
    code = f"import sys; sys.path += {[str(Path(__file__).parent), *sys.path]!r}\n{code}"
    file = folder / "result.json"
    done = subprocess.run(
        [sys.executable, *flags, "-c", code, str(file)],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    assert file.exists(), done.stderr
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def check(result: dict[str, Any]) -> None:
    told = result["told"]
    assert result["status"] == (0 if result["ignores SIGCHLD"] else 7), "it knows how its own child has ended"
    assert told["path"] == result["path"]
    assert told["environment"] == result["environment"]
    assert told["signals"]["SIGCHLD"] == told["signals"]["SIGTERM"] == str(signal.SIG_DFL)
    assert told["blocked"] == []
    assert told["more"] == ["a", 1]
    assert told["session"]
    assert "closed" not in told["standard files"]


@pytest.mark.parametrize("name", SITUATIONS)
def test_under(name: str, tmp_path: Path) -> None:
    check(run(tmp_path, SITUATIONS[name]))


@pytest.mark.parametrize(
    "flags", [("-I",), ("-S",), ("-E",), ("-O",), ("-OO",), ("-W", "error"), ("-P",), ("-X", "dev")]
)
def test_with_the_flags_of_the_interpreter(flags: tuple[str, ...], tmp_path: Path) -> None:
    if flags == ("-P",) and sys.version_info < (3, 11):
        pytest.skip("this Python has no -P")
    result = run(tmp_path, "", *flags)
    check(result)
    isolated, no_site, optimize, warnings = result["told"]["flags"]
    assert isolated == (flags == ("-I",))
    assert no_site == (flags == ("-S",))
    assert optimize == {"-O": 1, "-OO": 2}.get(flags[0], 0)
    assert ("error" in warnings) == (flags == ("-W", "error"))


def test_dispositions_from_before_the_program(tmp_path: Path) -> None:
    def ignore() -> None:
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    result = run(tmp_path, "", preexec_fn=ignore)
    check(result)
    # As under nohup: whoever wants that for the program wants it for what it starts.
    assert result["told"]["signals"]["SIGHUP"] == str(signal.SIG_IGN)


@pytest.mark.parametrize("executable", ["''", "None"])
def test_an_interpreter_that_python_does_not_name(executable: str, tmp_path: Path) -> None:
    check(run(tmp_path, f"sys.executable = {executable}"))


def test_no_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", None)
    monkeypatch.setattr(sys, "executable", "")
    for name in ("exec_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, str(tmp_path))
    with pytest.raises(StartupError, match=r"sys\.executable is ''.*multiprocessing\.set_executable"):
        find_interpreter()


def test_a_frozen_program(monkeypatch: pytest.MonkeyPatch) -> None:
    python = sys.executable
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", "/opt/application")
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/opt/application")
    with pytest.raises(StartupError, match=r"frozen into /opt/application.*multiprocessing\.set_executable"):
        start_python("start_calls:tell", (), output=None)
    multiprocessing.set_executable(python)
    assert find_interpreter() == python


def test_the_interpreter_that_multiprocessing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", None)
    multiprocessing.set_executable("/opt/python")
    assert find_interpreter() == "/opt/python"
