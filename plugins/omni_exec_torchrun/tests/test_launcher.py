"""The launcher starts ranks again when one dies, says why when it gives up, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from omni_core.errors import ConfigError
from omni_core.forking.warm import connect_shared
from omni_core.replicas.loop import run_in
from omni_core.wire.reactor import Reactor
from omni_exec_torchrun.launch_settings import LaunchSettings, parse_nnodes
from omni_exec_torchrun.launcher import Launcher

# Importing torch, on a machine that does other things as well.
STARTING = 60.0

WaitUntil = Callable[..., None]


class Group:
    """A launcher that runs tiny ranks, and what became of them."""

    def __init__(self, reactor: Reactor, folder: Path, wait_until: WaitUntil, **settings: Any) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        self.ended: list[int] = []
        self._reactor = reactor
        self._wait = wait_until
        self.output = folder / "output.txt"
        environment = settings.pop("environment", {})
        # As with a warm server; one test of each kind says `interpreter=True`.
        connection = None if settings.pop("interpreter", False) else connect_shared()
        told = {"module": "tiny_rank", "module_arguments": (str(folder),), **settings}
        launch_settings = LaunchSettings(environment=environment, **told)

        def start() -> None:
            with self.output.open("wb") as output:
                self.launcher = Launcher(
                    reactor,
                    launch_settings,
                    output.fileno(),
                    self.ended.append,
                    self.events.append,
                    fork_server=connection,
                )

        run_in(reactor, start)
        wait_until(lambda: self.launcher.pid is not None, STARTING)

    def ranks(self, restart: int) -> list[dict[str, Any]]:
        return [one for one in _told(self.folder) if one["TORCHELASTIC_RESTART_COUNT"] == str(restart)]

    def wait_for_ranks(self, restart: int, number: int) -> list[dict[str, Any]]:
        self._wait(lambda: len(self.ranks(restart)) == number or bool(self.ended), STARTING)
        assert not self.ended, self.output.read_text()
        return sorted(self.ranks(restart), key=lambda one: int(one["RANK"]))

    def wait_for_end(self) -> int:
        self._wait(lambda: bool(self.ended))
        return self.ended[0]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def processes(self) -> list[psutil.Process]:
        launcher = psutil.Process(self.launcher.pid)
        return [launcher, *launcher.children(recursive=True)]

    def run(self, action: Callable[[], None]) -> None:
        run_in(self._reactor, action)


def _told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("*.json")]


def _alive(pids: list[int]) -> list[int]:
    alive = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
    return alive


Start = Callable[..., Group]


@pytest.fixture
def start(tmp_path: Path, wait_until: WaitUntil) -> Iterator[Start]:
    reactor = Reactor("omni-test")
    groups: list[Group] = []
    files = len(os.listdir("/proc/self/fd"))

    def start(**settings: Any) -> Group:
        groups.append(Group(reactor, tmp_path, wait_until, **settings))
        return groups[-1]

    yield start
    pids = [one["PID"] for one in _told(tmp_path)]
    for group in groups:
        run_in(reactor, group.launcher.close)
        run_in(reactor, group.launcher.close)
    wait_until(lambda: not _alive(pids), 5.0)
    assert len(os.listdir("/proc/self/fd")) == files
    reactor.stop()


@pytest.mark.alone
@pytest.mark.parametrize("interpreter", [False, True])
def test_a_rank_that_dies_is_started_again(start: Start, interpreter: bool) -> None:
    group = start(nproc_per_node=2, max_restarts=3, interpreter=interpreter)
    took = []
    for restart in range(3):
        ranks = group.wait_for_ranks(restart, 2)
        assert [one["WORLD_SIZE"] for one in ranks] == ["2", "2"]
        began = time.time()
        os.kill(ranks[1]["PID"], signal.SIGKILL)
        took.append(group.wait_for_ranks(restart + 1, 2)[0]["TIME"] - began)
        assert group.of_kind("worker_ended")[-1] == {
            "event": "worker_ended", "rank": 1, "local_rank": 1, "pid": ranks[1]["PID"], "exit_code": -9
        }  # fmt: skip
        assert _alive([one["PID"] for one in ranks]) == []
    assert [event["restart"] for event in group.of_kind("started")] == [0, 1, 2, 3]
    assert [event["restart"] for event in group.of_kind("restarting")] == [1, 2, 3]
    assert min(took) < 0.1 + 0.1, took  # the agent's part, and starting an interpreter
    assert "rank 1 of 2 is here" in group.output.read_text()


def test_restarts_are_used_up(start: Start) -> None:
    group = start(nproc_per_node=2, max_restarts=1)
    os.kill(group.wait_for_ranks(0, 2)[0]["PID"], signal.SIGKILL)
    last = group.wait_for_ranks(1, 2)[1]["PID"]
    os.kill(last, signal.SIGSEGV)
    assert group.wait_for_end() == 1
    (failed,) = group.of_kind("failed")
    assert (failed["rank"], failed["pid"], failed["exit_code"]) == (1, last, -signal.SIGSEGV)
    assert failed["reason"] == (
        f"rank 1 (process {last}) was killed by SIGSEGV, and the 1 restarts of the ranks are used up"
    )
    assert group.launcher.has_ended


def test_a_module_that_is_not_there(start: Start) -> None:
    group = start(module="no_such_module", max_restarts=0)
    group._wait(lambda: bool(group.ended), STARTING)
    assert group.ended == [1]
    assert "rank 0" in group.of_kind("failed")[0]["reason"]
    assert "exited with code 1" in group.of_kind("failed")[0]["reason"]
    assert "No module named no_such_module" in group.output.read_text()


def test_stopping_leaves_nothing(start: Start, wait_until: WaitUntil) -> None:
    group = start(nproc_per_node=2)
    group.wait_for_ranks(0, 2)
    pids = [process.pid for process in group.processes()]
    group.run(group.launcher.stop)
    assert group.wait_for_end() == -signal.SIGTERM
    assert _alive(pids) == []
    assert group.of_kind("failed") == []
    assert len(group.ended) == 1
    group.run(group.launcher.stop)
    group.run(group.launcher.kill)


def test_ranks_that_do_not_stop_are_killed(start: Start) -> None:
    group = start(nproc_per_node=2, stop_grace_s=0.5, environment={"TINY_RANK": "stubborn"})
    pids = [one["PID"] for one in group.wait_for_ranks(0, 2)]
    began = time.monotonic()
    os.kill(pids[0], signal.SIGKILL)
    pids += [one["PID"] for one in group.wait_for_ranks(1, 2)]
    group.run(group.launcher.stop)
    assert group.wait_for_end() == -signal.SIGTERM
    assert time.monotonic() - began < 10.0
    assert _alive(pids) == []


def test_stopping_while_it_starts(start: Start) -> None:
    group = start()
    group.run(group.launcher.stop)
    assert group.wait_for_end() == -signal.SIGTERM


def test_a_stopped_launcher_is_killed(start: Start) -> None:
    group = start(stop_grace_s=0.1)
    group.wait_for_ranks(0, 1)
    os.kill(group.launcher.pid, signal.SIGSTOP)
    group.run(group.launcher.stop)
    assert group.wait_for_end() == -signal.SIGKILL


def test_killing_it_takes_the_ranks_along(start: Start, wait_until: WaitUntil) -> None:
    group = start(nproc_per_node=2)
    pids = [one["PID"] for one in group.wait_for_ranks(0, 2)]
    group.run(group.launcher.kill)
    assert group.wait_for_end() == -signal.SIGKILL
    wait_until(lambda: not _alive(pids), 5.0)


def test_a_terminal_does_not_reach_it(start: Start) -> None:
    group = start()
    rank = group.wait_for_ranks(0, 1)[0]["PID"]
    assert os.getsid(group.launcher.pid) not in (os.getsid(0), os.getsid(rank))
    os.kill(group.launcher.pid, signal.SIGINT)
    os.kill(rank, signal.SIGKILL)
    group.wait_for_ranks(1, 1)


@pytest.mark.parametrize("nodes", ["one node", "an endpoint"])
def test_nothing_listens_beyond_loopback(start: Start, free_port: int, nodes: str) -> None:
    has_store = nodes == "an endpoint"
    more = {"rdzv_endpoint": f"127.0.0.1:{free_port}", "environment": {"TINY_RANK": "meet"}} if has_store else {}
    group = start(nproc_per_node=2, **more)
    for restart in range(2):
        ranks = group.wait_for_ranks(restart, 2)  # they have met in torch's store, where there is one
        assert {one["MASTER_ADDR"] for one in ranks} == {"127.0.0.1"}
        listening = [
            connection.laddr.ip
            for process in group.processes()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening == ["127.0.0.1"] * has_store
        os.kill(ranks[0]["PID"], signal.SIGKILL)


def test_output_in_files(start: Start, tmp_path: Path) -> None:
    group = start(nproc_per_node=2, log_folder=str(tmp_path / "logs"))
    group.wait_for_ranks(0, 2)
    logs = sorted((tmp_path / "logs").glob("*/attempt_0/*/stdout.log"))
    assert [path.read_text() for path in logs] == ["rank 0 of 2 is here\n", "rank 1 of 2 is here\n"]
    assert "is here" not in group.output.read_text()


def test_an_endpoint_of_its_own(start: Start, free_port: int) -> None:
    """A single node may meet at an address as well, where others may join."""
    group = start(rdzv_endpoint=f"127.0.0.1:{free_port}", nnodes="1:2", last_call_timeout_s=1)
    os.kill(group.wait_for_ranks(0, 1)[0]["PID"], signal.SIGKILL)
    group.wait_for_ranks(1, 1)
    listening = {
        connection.laddr.ip
        for connection in group.processes()[0].net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_others_that_do_not_come(start: Start, free_port: int) -> None:
    group = start(rdzv_endpoint=f"127.0.0.1:{free_port}", nnodes="2", join_timeout_s=1)
    group._wait(lambda: bool(group.ended), STARTING)
    assert group.ended == [75]
    assert "RendezvousTimeoutError" in group.of_kind("failed")[0]["reason"]


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("when", ["at once", "with ranks"])
def test_nothing_is_left_of_a_killed_driver(tmp_path: Path, wait_until: WaitUntil, when: str) -> None:
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from omni_core.replicas.loop import run_in
        from omni_core.wire.reactor import Reactor
        from omni_exec_torchrun.launch_settings import LaunchSettings
        from omni_exec_torchrun.launcher import Launcher
        reactor = Reactor("omni-test")
        settings = LaunchSettings(
            module="tiny_rank", module_arguments=({str(tmp_path)!r},), nproc_per_node=2
        )
        def start():
            print(Launcher(reactor, settings, 2, lambda status: None).pid, flush=True)
        run_in(reactor, start)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        pids = [int(driver.stdout.readline())]
        if when == "with ranks":
            wait_until(lambda: len(_told(tmp_path)) == 2, STARTING)
            pids += [one["PID"] for one in _told(tmp_path)]
        driver.kill()
        wait_until(lambda: not _alive(pids), 5.0)
    assert len(_told(tmp_path)) == len(pids) - 1


@pytest.mark.alone
def test_it_is_idle_when_nothing_happens(start: Start) -> None:
    group = start()
    group.wait_for_ranks(0, 1)
    launcher = psutil.Process(group.launcher.pid)
    before, began = launcher.cpu_times(), time.monotonic()
    threading.Event().wait(5.0)  # what is measured is this time
    after = launcher.cpu_times()
    used = after.user + after.system - before.user - before.system
    # 0.3 % of a core is 15 ms, less than two of the kernel's ticks; 0.03 % was measured.
    assert used / (time.monotonic() - began) <= 0.01


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nnodes": "2"}, "needs an rdzv_endpoint"),
        ({"nnodes": "0"}, "is no number of nodes"),
        ({"nnodes": "3:2", "rdzv_endpoint": "host:1"}, "is no number of nodes"),
        ({"nnodes": "many", "rdzv_endpoint": "host:1"}, "is no number of nodes"),
        ({"rdzv_endpoint": "host"}, "is no address"),
        ({"rdzv_id": ""}, "rdzv_id"),
        ({"nproc_per_node": 0}, "nproc_per_node"),
        ({"max_restarts": -1}, "max_restarts"),
    ],
)
def test_settings_that_cannot_be_meant(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LaunchSettings(**values)


def test_settings_travel() -> None:
    settings = LaunchSettings(module_arguments=("a", "b"), rdzv_configs={"x": 1}, environment={"A": "b"})
    assert LaunchSettings.from_json(settings.to_json()) == settings
    assert parse_nnodes("3") == (3, 3)
    assert parse_nnodes("1:4") == (1, 4)


def test_modules_of_the_current_folder_are_left_alone(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])  # "", as with -c, would be this folder
    start().wait_for_ranks(0, 1)


def test_a_fork_server_that_cannot_be_asked_is_told_at_once(tmp_path: Path, wait_until: WaitUntil) -> None:
    reactor = Reactor("omni-test")
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.close()

            def start(connection: socket.socket = ours) -> None:
                Launcher(reactor, LaunchSettings(), 2, lambda status: None, fork_server=connection)

            with pytest.raises(ConnectionError):
                run_in(reactor, start)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        reactor.stop()


def test_one_that_has_not_answered_yet_does_not_hold_up_the_end(wait_until: WaitUntil) -> None:
    reactor = Reactor("omni-test")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ended: list[int] = []
    try:
        launchers: list[Launcher] = []
        run_in(
            reactor,
            lambda: launchers.append(Launcher(reactor, LaunchSettings(), 2, ended.append, fork_server=ours)),
        )
        run_in(reactor, launchers[0].stop)
        wait_until(lambda: ended == [-signal.SIGTERM], 5.0)
        run_in(reactor, launchers[0].close)
    finally:
        theirs.close()
        reactor.stop()
