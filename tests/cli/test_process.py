"""`omni` in a process of its own: what it imports, how it takes Ctrl-C, what it does on a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

# What is said of each.
ENDINGS = {
    signal.SIGINT: "Interrupted: stopping.",
    signal.SIGTERM: "Terminated: stopping.",
    signal.SIGHUP: "gone: stopping.",
}
LONG = ("--model", "cli_test_models:ddpm", "--steps", "90000")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["plugins"], ["config"], ["generate", "--help"]])
def test_light_commands_import_nothing_heavy(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "omni_core", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    imported = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "diffusers", "transformers", "numpy", "PIL", "safetensors", "accelerate", "av"}


def test_exit_codes_as_a_shell_sees_them(omni_process):
    painter = ("--model", "cli_test_models:Painter")
    assert omni_process("generate", "fail", *painter).returncode == 1
    assert omni_process("generate", "a", "--max-num-seqs", "0").returncode == 2
    assert omni_process("generate", "a", "--model", "./nothing").returncode == 3


def test_a_factory_in_the_working_directory_is_found(omni_process, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    (tmp_path / "here.py").write_text("class Pipe:\n    def __call__(self, prompt): raise OSError(prompt)\n")
    script = "from omni_core.cli import main; main(['generate', 'found', '--model', 'here:Pipe'])"
    result = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert "OSError: found" in result.stderr


@pytest.fixture(autouse=True)
def _usual_signals():
    """What the tests start does not ignore what the tests ignore: a shell starts `pytest &` without Ctrl-C."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDINGS if number != signal.SIGINT}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_ctrl_c_stops_within_a_step_and_leaves_nothing(flags):
    with _Started("generate", *flags, *LONG) as process:
        before = _read_until(process.stderr, "started")
        process.send_signal(signal.SIGINT)
        after = process.stderr.read()
        stdout = process.stdout.read()
        assert process.wait() == 130
    assert "Interrupted" not in before
    told = [line for line in after.splitlines() if ": step" not in line]
    assert told == ["Interrupted: stopping. Press Ctrl-C again to leave at once."]
    assert list(Path().iterdir()) == []
    if flags:
        [request] = json.loads(stdout)["requests"]
        assert (request["finish_reason"], request["files"]) == ("aborted", [])
        assert request["metrics"]["num_steps"] < 90_000
    else:
        assert stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_stop_it_as_well(number):
    """Twice, as `timeout` and terminals send them: the second does not cut the first short."""
    with _Started("generate", "--json", *LONG) as process:
        _read_until(process.stderr, "started")
        process.send_signal(number)
        _read_until(process.stderr, ENDINGS[number])
        process.send_signal(number)
        [request] = json.loads(process.stdout.read())["requests"]
        assert process.wait() == 128 + number
    assert request["finish_reason"] == "aborted"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_ignored(number):
    """SIGINT in what a script starts with `&`, SIGHUP under nohup; another signal ends it all the same."""
    name = signal.Signals(number).name
    with _Started("generate", *LONG, before=["bash", "-c", f"trap '' {name}; exec \"$@\"", "bash"]) as process:
        _read_until(process.stderr, "started")
        process.send_signal(number)
        process.send_signal(signal.SIGTERM)  # were both handled, then in this order
        told = _read_until(process.stderr, "stopping.")
        assert process.wait() == 128 + signal.SIGTERM
    assert ENDINGS[signal.SIGTERM] in told
    assert ENDINGS[number] not in told


def test_a_background_job_of_a_script(tmp_path):
    """The shell lets it ignore SIGINT; it runs to its end, and what it made is there."""
    omni = f"{sys.executable} -m omni_core generate a --seed 1 --model cli_test_models:Painter"
    script = f"{omni} & wait $!"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a-1.png").exists()


def test_a_terminal_that_is_closed():
    """The kernel sends SIGHUP, and nothing can be written any more."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "omni_core", "generate", "--json", *LONG]
    environment = {**os.environ, "TERM": "xterm-256color"}
    # The terminal becomes that of a session of its own, as a window's is.
    with subprocess.Popen(
        ["setsid", "--ctty", *command], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        while b"/90000" not in shown:
            shown += os.read(ours, 65536)
        os.close(ours)
        [request] = json.loads(process.stdout.read())["requests"]
        assert process.wait(60) == 128 + signal.SIGHUP
    assert request["finish_reason"] == "aborted"


def test_ctrl_c_while_the_model_is_loaded(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import sys, threading\n"
        "def factory():\n"
        "    print('LOADING NOW', file=sys.stderr, flush=True)\n"
        "    threading.Event().wait(3600)\n"
    )
    with _Started("generate", "a", "--model", "slow:factory") as process:
        _read_until(process.stderr, "LOADING NOW")
        process.send_signal(signal.SIGINT)
        _read_until(process.stderr, "Interrupted")
        process.send_signal(signal.SIGINT)  # a second time: at once, without waiting for the loading
        # To a shell both are 130: by then the interpreter may be so far in its end that it handles no signals.
        assert process.wait() in (130, -signal.SIGINT)
        assert "Traceback" not in process.stderr.read()


def test_bars_on_a_terminal():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-m", "omni_core", "generate", "--seed", "1", "--model", "cli_test_models:ddpm"]
    with subprocess.Popen(
        [*command, "--steps", "900"], stderr=theirs, stdout=subprocess.PIPE, env=environment
    ) as process:
        os.close(theirs)
        shown = _drain(ours)
        assert process.wait(120) == 0
        assert process.stdout.read() == b""
    assert "━" in shown
    assert "/900" in shown
    assert "output-1.png  256x256" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")  # the cursor is shown again


class _Started:
    """A process with pipes, killed if the test takes too long, so that reading from it ends."""

    def __init__(self, *arguments, before=()):
        self._process = subprocess.Popen(
            [*before, sys.executable, "-m", "omni_core", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._timer = threading.Timer(100, self._process.kill)

    def __enter__(self):
        self._timer.start()
        return self._process.__enter__()

    def __exit__(self, *error):
        self._timer.cancel()
        self._process.kill()
        self._process.__exit__(*error)


def _read_until(stream, text):
    read = ""
    for line in stream:
        read += line
        if text in line:
            return read
    raise AssertionError(f"{text!r} never came; what came: {read}")


def _drain(descriptor):
    chunks = []
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # what Linux says when the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(descriptor)
    return b"".join(chunks).decode("utf-8", "replace")


def test_nothing_but_our_own_lines_while_a_folder_is_loaded(omni_process, tmp_path):
    from cli_test_models import ddpm

    ddpm().save_pretrained(tmp_path / "model")
    result = omni_process("generate", "--model", "./model", "--steps", "1", "--seed", "1")
    assert [line.split(",")[0] for line in result.stderr.splitlines()] == [
        "Loading ./model …",
        "[1/1] (no prompt): started",
        "[1/1] (no prompt): step 1 of 1",
        "output-1.png  256x256",
    ]
    assert omni_process("generate", "-q", "--model", "./model", "--steps", "1").stderr == ""
