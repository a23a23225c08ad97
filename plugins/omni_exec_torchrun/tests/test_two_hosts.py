"""One replica over two hosts, as network namespaces with a cable between them that is cut and mended."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from netns import Network, two_machines

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.wire.secret import new_secret, write_secret
from omni_exec_torchrun.secret import SECRET_FILE_VARIABLE

_HERE = Path(__file__).parent
_PORT = 29537
_NODE_TIMEOUT_S = 6
# Two interpreters and torch twice, on a machine that does other things as well.
_STARTING_S = 120.0
# After the loss is noticed: the message, with a margin for a busy machine.
_NOTICING_S = _NODE_TIMEOUT_S + 15.0
# The other node's longest pause between two attempts, and a start.
_RETURNING_S = 120.0
SHORT = {"seed": 3, "num_inference_steps": 4, "guidance_scale": 4.0, "extra_args": {"class_labels": [1]}}
LONG = {**SHORT, "num_inference_steps": 900}


class Driver:
    """The program on the left host."""

    def __init__(self, network: Network, environment: dict[str, str], log: Path) -> None:
        options = {
            "nnodes": "2",
            "rdzv_endpoint": f"{network.left.address}:{_PORT}",
            "master_addr": network.left.address,
            "node_timeout_s": _NODE_TIMEOUT_S,
        }
        self._log = log
        with log.open("wb") as stderr:
            self.process = network.left.popen(
                sys.executable, str(_HERE / "node_driver.py"), json.dumps(options),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment,
            )  # fmt: skip
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, fields: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(fields) + "\n")
        self.process.stdin.flush()

    def wait_for(self, event: str, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                told = self._told.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {event!r} within {timeout_s} s\n{self._log.read_text()[-6000:]}") from None
            if told["event"] == event:
                return told

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait(10)
            self._reader.join(10)
            assert self.process.stdout is not None
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._told.put(json.loads(line))


@pytest.fixture
def network() -> Iterator[Network]:
    with two_machines() as made:
        yield made


@pytest.mark.timeout(600)
def test_a_replica_over_two_hosts_survives_a_cut_cable(network: Network, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    write_secret(secret, new_secret())
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        SECRET_FILE_VARIABLE: str(secret),
    }
    driver = Driver(network, environment, tmp_path / "driver.log")
    command = [
        str(Path(sys.executable).with_name("omni")),
        "torchrun-worker",
        *("--rdzv-endpoint", f"{network.left.address}:{_PORT}", "--nnodes", "2"),
        *("--node-timeout", str(_NODE_TIMEOUT_S)),
    ]
    with (tmp_path / "node.log").open("wb") as log:
        node = network.right.popen(*command, stdout=log, stderr=log, env=environment)
    try:
        driver.wait_for("ready", _STARTING_S)
        driver.ask(SHORT)
        assert_like_inline(driver.wait_for("end", 60))

        driver.ask(LONG)
        driver.wait_for("step", 60)
        network.cut()
        driver.wait_for("retrying", _NOTICING_S)
        network.mend()
        assert driver.wait_for("end", _RETURNING_S)["reason"] == "finished"
        driver.ask(SHORT)
        assert_like_inline(driver.wait_for("end", 60))
    finally:
        driver.end()
        node.terminate()
        try:
            node.wait(20)
        finally:
            node.kill()
            node.wait(10)


def assert_like_inline(end: dict[str, Any]) -> None:
    assert end["reason"] == "finished", end["error"]
    config = OmniDiffusionConfig(model="omni_core.testing.pipelines:class_conditional")
    with DiffusionEngine(config) as inline:
        [output] = inline.step([OmniDiffusionRequest(output_type="np", **SHORT)])
    assert np.abs(np.array(end["images"]) - output.raise_for_error().output["images"]).max() <= 1e-4
