"""Nodes meet, notice when one is lost, go on with those that are left, and take it back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from netns import two_machines

from omni_core.errors import ConfigError
from omni_core.wire.secret import new_secret, write_secret
from omni_exec_torchrun.launch_settings import LaunchSettings
from omni_exec_torchrun.node import node_settings, run_node
from omni_exec_torchrun.secret import SECRET_FILE_VARIABLE, SECRET_VARIABLE

_HERE = Path(__file__).parent
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(_HERE), *sys.path]),
    "OMP_NUM_THREADS": "1",
    "TINY_RANK": "meet",
}
# Importing torch in the launcher, and then in the ranks, on a machine that does other things as well.
STARTING = 90.0
# Three signs of life, one a second, a restart, and torch once more.
NOTICING = 40.0
# The longest pause between two attempts, too.
RETURNING = 90.0

WaitUntil = Callable[..., None]


class Node:
    """A process that runs ranks, and which of them are there."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        folder.mkdir()
        self.folder = folder
        self.log = folder / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **ENVIRONMENT, SECRET_VARIABLE: new_secret().decode()},
            )

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in self.folder.glob("*.json")]

    def world_size(self) -> int:
        """Size of the group that the rank running here is in, once it has met the others; else 0."""
        for one in self.told():
            if _is_alive(one["PID"]):
                return int(one["WORLD_SIZE"])
        return 0

    def end(self) -> None:
        self.process.kill()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


class Nodes:
    """A driver's node and others, each with one rank."""

    def __init__(self, tmp_path: Path, wait_until: WaitUntil, endpoint: str) -> None:
        self._tmp_path = tmp_path
        self._wait = wait_until
        self.nodes: list[Node] = []
        self._settings = LaunchSettings(
            module="tiny_rank",
            rdzv_endpoint=endpoint,
            rdzv_id="test",
            nnodes="1:2",
            max_restarts=100,
            last_call_timeout_s=1,
            keep_alive_interval_s=1,
            read_timeout_s=5,
        )

    def start(self, script: str, name: str, prefix: Sequence[str] = ()) -> Node:
        folder = self._tmp_path / name
        settings = dataclasses.replace(self._settings, module_arguments=(str(folder),))
        command = [*prefix, sys.executable, str(_HERE / script), settings.to_json()]
        self.nodes.append(Node(folder, command))
        return self.nodes[-1]

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> float:
        began = time.monotonic()
        try:
            self._wait(condition, timeout)
        except AssertionError as error:
            logs = "\n\n".join(f"{node.folder.name}:\n{node.log.read_text()}" for node in self.nodes)
            raise AssertionError(f"{error}\n{logs}") from None
        return time.monotonic() - began

    def wait_for_sizes(self, sizes: dict[str, int], timeout: float) -> float:
        by_name = {node.folder.name: node for node in self.nodes}
        return self.wait_for(lambda: all(by_name[name].world_size() == size for name, size in sizes.items()), timeout)


@pytest.fixture
def nodes_at(tmp_path: Path, wait_until: WaitUntil) -> Iterator[Callable[[str], Nodes]]:
    made: list[Nodes] = []

    def make(endpoint: str) -> Nodes:
        made.append(Nodes(tmp_path, wait_until, endpoint))
        return made[-1]

    yield make
    pids = []
    for nodes in made:
        for node in nodes.nodes:
            with contextlib.suppress(psutil.NoSuchProcess):
                pids += [one.pid for one in psutil.Process(node.process.pid).children(recursive=True)]
            node.end()
    wait_until(lambda: not any(map(_is_alive, pids)), 5.0)


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_a_cable_is_cut_and_mended(nodes_at: Callable[[str], Nodes]) -> None:
    with two_machines() as network:
        nodes = nodes_at(f"{network.left.address}:29400")
        nodes.start("run_launcher.py", "driver", network.left.command())
        nodes.start("run_node.py", "node", network.right.command())
        formed = nodes.wait_for_sizes({"driver": 2, "node": 2}, STARTING)
        network.cut()
        noticed = nodes.wait_for_sizes({"driver": 1, "node": 0}, NOTICING)
        network.mend()
        returned = nodes.wait_for_sizes({"driver": 2, "node": 2}, RETURNING)
        print(f"formed in {formed:.1f} s, noticed in {noticed:.1f} s, formed again in {returned:.1f} s")  # noqa: T201
        log = nodes.nodes[0].log.read_text()
        assert '"event": "membership"' in log
        assert '"event": "failed"' not in log


def test_nodes_come_and_go(nodes_at: Callable[[str], Nodes], free_port: int) -> None:
    nodes = nodes_at(f"127.0.0.1:{free_port}")
    early = nodes.start("run_node.py", "early")  # there is nobody yet
    driver = nodes.start("run_launcher.py", "driver")
    nodes.wait_for_sizes({"driver": 2, "early": 2}, STARTING)
    early.process.send_signal(signal.SIGTERM)
    assert early.process.wait(10) == 0
    nodes.wait_for_sizes({"driver": 1, "early": 0}, NOTICING)
    late = nodes.start("run_node.py", "late")
    nodes.wait_for_sizes({"driver": 2, "late": 2}, STARTING)
    late.process.kill()
    nodes.wait_for_sizes({"driver": 1, "late": 0}, NOTICING)
    assert driver.process.poll() is None


def test_the_driver_comes_back(nodes_at: Callable[[str], Nodes], free_port: int) -> None:
    nodes = nodes_at(f"127.0.0.1:{free_port}")
    driver = nodes.start("run_launcher.py", "driver")
    node = nodes.start("run_node.py", "node")
    nodes.wait_for_sizes({"driver": 2, "node": 2}, STARTING)
    driver.process.kill()
    nodes.wait_for_sizes({"driver": 0, "node": 0}, NOTICING)
    nodes.start("run_launcher.py", "second")
    nodes.wait_for_sizes({"second": 2, "node": 2}, RETURNING)
    node.process.send_signal(signal.SIGINT)
    assert node.process.wait(10) == 0


def test_plain_torchrun_joins(nodes_at: Callable[[str], Nodes], free_port: int, tmp_path: Path) -> None:
    nodes = nodes_at(f"127.0.0.1:{free_port}")
    nodes.start("run_launcher.py", "driver")
    folder = tmp_path / "torchrun"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port}", "--rdzv-id=test"),
        *("--rdzv-conf=last_call_timeout=1,keep_alive_interval=1,is_host=0", "--local-addr=127.0.0.1"),
        *("-m", "tiny_rank", str(folder)),
    ]
    nodes.wait_for_sizes({"driver": 1}, STARTING)
    nodes.nodes.append(Node(folder, command))
    nodes.wait_for_sizes({"driver": 2, "torchrun": 2}, STARTING)


def test_a_node_without_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    monkeypatch.delenv(SECRET_FILE_VARIABLE, raising=False)
    settings = node_settings(rdzv_endpoint="127.0.0.1:1", rdzv_id="test", nnodes="1:2")
    with pytest.raises(ConfigError, match=SECRET_VARIABLE):
        run_node(settings)


def test_a_node_waits_until_it_is_told_not_to(tmp_path: Path, free_port: int) -> None:
    write_secret(tmp_path / "secret", new_secret())
    settings = node_settings(rdzv_endpoint=f"127.0.0.1:{free_port}", rdzv_id="test", nnodes="2")
    stop = threading.Event()
    thread = threading.Thread(
        target=run_node, args=(settings,), kwargs={"secret_file": tmp_path / "secret", "stop": stop}
    )
    thread.start()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "values", [{"rdzv_endpoint": ""}, {"rdzv_endpoint": "host"}, {"rdzv_id": ""}, {"nnodes": "x"}], ids=repr
)
def test_what_cannot_be_meant(values: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        node_settings(**{"rdzv_endpoint": "host:1", "rdzv_id": "test", "nnodes": "2", **values})
