"""A fork server that engines share: whose workers are whose, what they have from their driver, who ends with whom."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fork_server_calls as calls
import psutil
import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.errors import ConfigError, StartupError
from omni_core.forking.messages import FORK
from omni_core.forking.starter import can_fork
from omni_core.forking.warm import SharedServer, current, warm_fork_server
from omni_core.testing.bounds import bounded
from omni_core.testing.footprint import identity, is_alive

pytestmark = pytest.mark.skipif(not can_fork(), reason="there are no fork servers on this system")

MODEL = "omni_core.testing.pipelines:class_conditional"
WaitUntil = Callable[..., None]

OWNER = f"""
import json, threading
from omni_core import DiffusionEngine, OmniDiffusionConfig
from omni_core.forking.warm import warm_fork_server

with warm_fork_server() as server:
    engine = DiffusionEngine(OmniDiffusionConfig(executor_class="multiproc", model="{MODEL}"))
    print(json.dumps([server.options, engine.executor.worker_pids()]), flush=True)
    threading.Event().wait(300.0)
"""


def make_engine(**options: Any) -> DiffusionEngine:
    return DiffusionEngine(OmniDiffusionConfig(executor_class="multiproc", model=MODEL, executor_options=options))


def assert_serves(engine: DiffusionEngine) -> None:
    request = OmniDiffusionRequest(num_inference_steps=2, extra_args={"class_labels": [1]})
    assert engine.step([request], timeout=60)[0].raise_for_error().images


def worker_of(engine: DiffusionEngine) -> int:
    [[pid]] = engine.executor.worker_pids()  # type: ignore[attr-defined]
    return int(pid)


def server_of(engine: DiffusionEngine) -> int:
    return psutil.Process(worker_of(engine)).ppid()


def ask(engine: DiffusionEngine, call: Callable[..., Any], *args: Any) -> Any:
    return engine.collective_rpc(call, 60, args, unique_reply_rank=0)


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """Run a Python program until it has printed a line of JSON, and end it afterwards."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        line = bounded(process.stdout.readline, "starting the program", 100.0)
        yield process, json.loads(line)
    finally:
        process.kill()
        process.wait(10.0)
        process.stdout.close()


def driver(server: SharedServer) -> contextlib.AbstractContextManager[tuple[subprocess.Popen[str], Any]]:
    """Run another program with an engine."""
    config = {"executor_class": "multiproc", "model": MODEL, "executor_options": server.options}
    return program("-m", "omni_core.testing.driver", json.dumps({"config": config, "loaded": False}))


def test_engines_share_a_server(warm_server: SharedServer) -> None:
    with make_engine() as one, make_engine(**warm_server.options) as other:
        assert server_of(one) == server_of(other)
        assert worker_of(one) != worker_of(other)
        assert psutil.Process(server_of(one)).num_threads() == 1, "it would not be safe to fork"
        one.close()
        assert_serves(other)


def test_a_server_of_ones_own(warm_server: SharedServer) -> None:
    with make_engine() as shared, make_engine(start_method="forkserver") as alone:
        assert server_of(shared) != server_of(alone)
        assert_serves(alone)
        server = identity(server_of(alone))
    assert not is_alive(server)


def test_workers_have_what_their_driver_has(
    warm_server: SharedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wait_until: WaitUntil
) -> None:
    core = min(os.sched_getaffinity(0))
    cores = os.sched_getaffinity(0)
    with make_engine() as plain:
        before = ask(plain, calls.surroundings)
    monkeypatch.setenv("A_SETTING", "fünf\udcff")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("HOME")
    monkeypatch.chdir(tmp_path)
    mask = os.umask(0o027)
    try:
        os.sched_setaffinity(0, {core})
        with make_engine() as engine:
            found = ask(engine, calls.surroundings)
            assert found == {
                "environment": dict(os.environ),
                "folder": str(tmp_path),
                "umask": 0o027,
                "cores": {core},
                "threads": 3,
            }
            assert "HOME" not in found["environment"]
            killed = worker_of(engine)
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: engine.executor.worker_pids() not in ([[]], [[killed]]))  # type: ignore[attr-defined]
            assert ask(engine, calls.surroundings) == found, "the next worker has it as well"
    finally:
        os.umask(mask)
        os.sched_setaffinity(0, cores)
    monkeypatch.undo()
    with make_engine() as plain:
        after = ask(plain, calls.surroundings)
    assert {**after, "folder": None, "environment": None} == {**before, "folder": None, "environment": None}
    assert "A_SETTING" not in after["environment"]
    assert after["threads"] == 1


def test_a_folder_that_was_removed(warm_server: SharedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "short-lived"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with make_engine() as engine:
        assert_serves(engine)


def test_each_imports_its_own_modules(
    warm_server: SharedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for value in (1, 2):
        folder = tmp_path / str(value)
        folder.mkdir()
        (folder / "settings_of_a_program.py").write_text(f"VALUE = {value}\n")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            with make_engine() as engine:
                assert ask(engine, calls.value_of, "settings_of_a_program") == value


def test_nothing_of_the_others_is_in_a_worker(warm_server: SharedServer) -> None:
    with make_engine() as first, make_engine() as second:
        files = [ask(engine, calls.files) for engine in (first, second)]
        for held in files:
            assert [what for what in held if what.startswith("anon_inode")] == []
            sockets = [what for what in held if what.startswith("socket")]
            assert len(sockets) == 2, "calls, and what cannot wait"
        # Standard input is the same nothing, and the rest nobody else's.
        assert {what for what in files[0] if what in files[1]} <= {"/dev/null", "/dev/urandom"}
        numbers = [ask(engine, calls.random_numbers) for engine in (first, second)]
        assert numbers[0][0] != numbers[1][0]
        assert numbers[0][1] != numbers[1][1]


def test_a_client_that_is_killed(warm_server: SharedServer, wait_until: WaitUntil) -> None:
    with make_engine() as ours:
        server = psutil.Process(server_of(ours))
        before = {child.pid for child in server.children()}
        with driver(warm_server) as (process, _):
            [pid] = {child.pid for child in server.children()} - before
            theirs = identity(pid)
            os.kill(pid, signal.SIGSTOP)  # or it would end by itself, as it sees that its driver is gone
            process.kill()
            wait_until(lambda: not is_alive(theirs), 5.0)
        wait_until(lambda: {child.pid for child in server.children()} == before, 5.0)
        assert_serves(ours)


def test_its_owner_is_killed(wait_until: WaitUntil) -> None:
    with program("-c", OWNER) as (owner, (options, [[theirs]])), make_engine(**options) as ours:
        assert server_of(ours) == psutil.Process(theirs).ppid()
        assert_serves(ours)
        processes = [identity(pid) for pid in (theirs, worker_of(ours), server_of(ours))]
        owner.kill()
        wait_until(lambda: not any(map(is_alive, processes)), 5.0)
        wait_until(lambda: not Path(options["fork_server"]).exists(), 5.0)
        assert_serves(ours)  # with a server of its own
        assert server_of(ours) != processes[2][0]


def test_the_context_is_left_while_an_engine_is_open(wait_until: WaitUntil) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(warm_fork_server())
        assert current() is server
        with make_engine() as engine:
            worker = identity(worker_of(engine))
            stack.close()
            assert current() is not server
            assert not server.folder.exists()
            wait_until(lambda: not is_alive(worker), 5.0)
            assert_serves(engine)


def test_a_context_without_use_is_left_at_once() -> None:
    begun = time.monotonic()
    with warm_fork_server() as server:
        assert server.folder.stat().st_mode & 0o777 == 0o700
    assert time.monotonic() - begun < 5.0


@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
def test_the_server_is_killed(own: bool, wait_until: WaitUntil) -> None:
    options = {"start_method": "forkserver"} if own else {}
    with warm_fork_server(), make_engine(**options) as engine:
        before = worker_of(engine)
        os.kill(server_of(engine), signal.SIGKILL)
        # Another server imports everything first.
        wait_until(lambda: engine.executor.worker_pids() not in ([[]], [[before]]), 60.0)  # type: ignore[attr-defined]
        assert_serves(engine)


def test_libraries_that_were_imported_otherwise(
    warm_server: SharedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with make_engine() as shared:
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        with make_engine() as alone:
            assert server_of(alone) != server_of(shared)
            assert ask(alone, calls.surroundings)["environment"]["HF_HOME"] == str(tmp_path)
    with pytest.raises(StartupError, match="HF_HOME"):
        make_engine(**warm_server.options)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="no fork server to share"):
        make_engine(fork_server=str(tmp_path))
    with pytest.raises(ConfigError, match="start_method"):
        make_engine(fork_server=str(tmp_path), start_method="spawn")


def test_a_client_that_talks_nonsense(warm_server: SharedServer) -> None:
    for message in (b"nonsense", FORK, FORK + b"{", FORK + b'["x"]', FORK + b"[" * 70_000):
        with warm_server.connect() as connection:
            connection.settimeout(20.0)
            connection.send(message)
            assert connection.recv(100) == b"", "it was sent away"
    warm_server.connect().close()  # and the server lives
    with make_engine(**warm_server.options) as engine:
        assert_serves(engine)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_refused() -> None:
    with warm_fork_server() as server:
        address = server.folder / "socket"
        assert said_to_another_user(address) == "PermissionError"
        # Even if somebody opens the folder.
        server.folder.chmod(0o777)
        address.chmod(0o777)
        assert said_to_another_user(address) == "nothing"


def said_to_another_user(address: Path) -> str:
    """Return what came from the server, or why there is no connection."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # not a program of its own: another user may not be allowed to run this Python
        try:
            os.setgid(65534)
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.settimeout(20.0)
                connection.connect(str(address))
                os.write(write, (connection.recv(100) or b"nothing"))
        except OSError as error:
            os.write(write, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        said = told.read()
    os.waitpid(pid, 0)
    return said
