"""The parts of SPMD mode that need no ranks."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.errors import ConfigError
from omni_core.wire import authentication
from omni_exec_torchrun.options import TorchrunOptions
from omni_exec_torchrun.spmd import connections as spmd_connections
from omni_exec_torchrun.spmd.connections import RankConnections
from omni_exec_torchrun.spmd.fields import describe, request_fields
from omni_exec_torchrun.spmd.ledger import Ledger
from omni_exec_torchrun.spmd.world import SpmdEnvironment, spmd_environment


def test_the_environment_is_torchruns_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert spmd_environment() is None
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert spmd_environment() is None  # other launchers set these too
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert spmd_environment() == SpmdEnvironment(3, 4, 1, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert spmd_environment() == SpmdEnvironment(3, 4, 1, 2)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="'first'"):
        spmd_environment()


def test_options_of_the_other_way_of_working_are_refused_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    TorchrunOptions(timeout_s=5, nproc_per_node=1).refuse_unused(spmd=False)
    with pytest.raises(ConfigError, match="option outputs has an effect only in a program that torchrun has started"):
        DiffusionEngine(OmniDiffusionConfig(executor_class="torchrun", executor_options={"outputs": "rank0"}))
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    TorchrunOptions(timeout_s=5, outputs="rank0").refuse_unused(spmd=True)
    options = {"backend": "gloo", "log_folder": "logs", "max_restarts": 1, "outputs": "rank0"}
    with pytest.raises(ConfigError, match="option backend, log_folder, max_restarts has no effect"):
        DiffusionEngine(OmniDiffusionConfig(executor_class="torchrun", executor_options=options))


def test_a_ledger_finds_what_differs_whoever_comes_first() -> None:
    ledger = Ledger("Request", range(3))
    assert ledger.note(0, {"prompt": "'a'", "seed": "1"}) is None
    assert ledger.note(1, {"prompt": "'a'", "seed": "1"}) is None
    assert not ledger.is_complete(1)
    complaint = ledger.note(2, {"prompt": "'b'", "seed": "1", "strength": "0.5"})
    assert complaint is not None
    assert "Request number 1" in complaint
    assert "prompt is 'a' on rank 0 and 'b' on rank 2" in complaint
    assert "strength is unset on rank 0 and 0.5 on rank 2" in complaint
    assert "seed is" not in complaint
    assert ledger.is_complete(1)
    assert not ledger.is_complete(2)


def test_a_ledger_names_who_is_late() -> None:
    ledger = Ledger("Call", (0, 1, 2))
    ledger.note(1, {"the call": "stats"})
    ledger.note(2, {"the call": "stats"})
    assert ledger.overdue(60.0) is None
    late = ledger.overdue(-1.0)
    assert late is not None
    assert "Call number 1 (the call = stats) came on rank 1 but not on rank 0" in late
    ledger.note(0, {"the call": "stats"})
    assert ledger.overdue(-1.0) is None


def some_function() -> None: ...


@pytest.mark.parametrize(
    ("make", "make_other"),
    [
        (lambda: torch.zeros(2, 3), lambda: torch.zeros(3, 2)),
        (lambda: torch.ones(4), lambda: torch.ones(4, dtype=torch.int32)),
        (lambda: torch.tensor(1.0, dtype=torch.bfloat16), lambda: torch.tensor(2.0, dtype=torch.bfloat16)),
        (lambda: np.arange(6).reshape(2, 3).T, lambda: np.arange(6).reshape(3, 2)),
        (lambda: PIL.Image.new("RGB", (4, 4), "red"), lambda: PIL.Image.new("RGB", (4, 4), "blue")),
        (lambda: [1, "two", None, (3.0,)], lambda: [1, "two", None, (3.5,)]),
        (lambda: {"a": [torch.ones(1)]}, lambda: {"a": [torch.zeros(1)]}),
        (lambda: "x" * 500, lambda: "x" * 499 + "y"),
        (lambda: some_function, lambda: describe),
        (lambda: torch.float16, lambda: torch.float32),
    ],
)
def test_equal_values_have_equal_texts(make: Callable[[], Any], make_other: Callable[[], Any]) -> None:
    assert describe(make()) == describe(make())
    assert describe(make()) != describe(make_other())
    assert len(describe(make())) < 250


def test_a_request_is_known_by_what_its_maker_chose() -> None:
    one, other = (OmniDiffusionRequest(prompt="a", extra_args={"eta": 0.5}) for _ in range(2))
    assert request_fields(one) == request_fields(other)
    assert request_fields(one)["eta"] == "0.5"
    seeded = request_fields(OmniDiffusionRequest(prompt="a", seed=one.seed, extra_args={"eta": 0.5}))
    assert seeded != request_fields(one)
    assert seeded["seed"] == str(one.seed)


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, Any]] = []
        self.lost_ranks: list[int] = []
        self.changed = threading.Event()

    def receive(self, rank: int, message: Any) -> None:
        self.messages.append((rank, message))
        self.changed.set()

    def lost(self, rank: int) -> None:
        self.lost_ranks.append(rank)
        self.changed.set()

    def tick(self) -> None: ...

    def wait(self) -> None:
        assert self.changed.wait(10)
        self.changed.clear()


def test_only_a_rank_that_knows_the_secret_can_connect() -> None:
    secret = b"s" * 32
    accepted: list[dict[int, Connection]] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        accepting = threading.Thread(
            target=lambda: accepted.append(spmd_connections._accept_all(server, secret, 2, time.monotonic() + 20))
        )
        accepting.start()
        with socket.create_connection(address, 5) as stranger, contextlib.suppress(ConnectionResetError):
            stranger.sendall(b"?" * 200)
            assert stranger.recv(1) == b""  # hung up on
        with authentication.connect(f"127.0.0.1:{address[1]}", secret, {"rank": 1}, 10) as friend:
            accepting.join(10)
            assert accepted[0].keys() == {1}
            theirs = spmd_connections._connection(friend)
    one, other = Heard(), Heard()
    first, second = RankConnections(accepted[0], one), RankConnections({0: theirs}, other)
    first.start()
    second.start()
    array = np.arange(100_000)
    first.send(("a message", array))
    other.wait()
    rank, (text, received) = other.messages[0]
    assert (rank, text) == (0, "a message")
    assert (received == array).all()
    second.close()
    one.wait()
    assert one.lost_ranks == [1]
    first.send("to nobody")
    first.close()
    first.close()
