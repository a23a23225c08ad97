from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from omni_core.wire.channel import Channel
from omni_core.wire.frame import ChannelClosedError, Frame, SendTimeoutError
from omni_core.wire.outbox import Outbox

BOUND_S = 20.0


def connect(shared_memory_bytes: int = 1 << 30, send_timeout_s: float = 10.0) -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return (
        Channel(left, send_timeout_s=send_timeout_s, shared_memory_bytes=shared_memory_bytes),
        Channel(right, send_timeout_s=None, shared_memory_bytes=0),
    )


@pytest.mark.parametrize("shared_memory_bytes", [0, 1 << 30])
def test_sending_never_waits_and_the_order_is_kept(shared_memory_bytes: int) -> None:
    ours, theirs = connect(shared_memory_bytes)
    errors: list[BaseException] = []
    outbox = Outbox(ours, "0.0", errors.append)
    sizes = [10, 300, 10_000_000, 5, 70_000, *([2000] * 400), 1]
    began = time.monotonic()
    for number, size in enumerate(sizes):
        outbox.send(Frame(number, bytes([number % 251]) * size, (np.full(100_000, number % 251, np.uint8),)))
    assert time.monotonic() - began < 5
    assert not outbox.is_empty
    for number, size in enumerate(sizes):
        frame = theirs.recv()
        assert (frame.number, len(frame.data)) == (number, size)
        assert set(frame.data) == {number % 251}
        assert bytes(frame.buffers[0]) == bytes([number % 251]) * 100_000
        del frame
    outbox.send(Frame(1000, b"last"))
    assert theirs.recv().number == 1000
    assert errors == []
    ours.close()
    theirs.close()


def test_what_waits_may_be_changed_by_its_owner() -> None:
    ours, theirs = connect()
    outbox = Outbox(ours, "0.0", lambda error: None)
    outbox.send(Frame(1, bytes(5_000_000)))
    array = np.ones(200_000, np.uint8)
    outbox.send(Frame(2, b"", (array,)))
    array[:] = 0
    assert theirs.recv().number == 1
    assert set(bytes(theirs.recv().buffers[0])) == {1}
    ours.close()
    theirs.close()


def test_an_end_of_the_other_side_is_told_once_and_the_thread_ends(wait_until: Callable[..., None]) -> None:
    ours, theirs = connect()
    errors: list[ChannelClosedError] = []
    outbox = Outbox(ours, "7.7", errors.append)
    outbox.send(Frame(1, bytes(5_000_000)))
    outbox.send(Frame(2, b"never"))
    theirs.close()
    wait_until(lambda: len(errors) == 1)
    wait_until(lambda: not any(one.name == "omni-send-7.7" for one in threading.enumerate()))
    assert not isinstance(errors[0], SendTimeoutError)
    ours.close()


@pytest.mark.parametrize("alive_for", [0, 3])
def test_who_takes_nothing_is_given_up_only_if_it_gives_no_sign_of_life(
    alive_for: int, wait_until: Callable[..., None]
) -> None:
    ours, theirs = connect(send_timeout_s=0.1)
    asked: list[bool] = []

    def answers() -> bool:
        asked.append(len(asked) < alive_for)
        return asked[-1]

    ours.is_other_alive = answers
    errors: list[ChannelClosedError] = []
    Outbox(ours, "0.0", errors.append).send(Frame(1, bytes(5_000_000)))
    wait_until(lambda: len(errors) == 1, timeout=BOUND_S)
    assert isinstance(errors[0], SendTimeoutError)
    assert len(asked) == alive_for + 1
    ours.close()
    theirs.close()
