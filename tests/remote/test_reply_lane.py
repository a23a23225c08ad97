"""A lane has one holder at a time, loses nothing but what its holder drops, and wakes whoever reads at its end."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from omni_core.remote.reply_lane import LANE, ReplyLane, make_lane, send_reply

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sockets of this kind are Linux only")
BOUND_S = 30.0


@pytest.fixture
def ends() -> Iterator[tuple[ReplyLane, socket.socket]]:
    pair = make_lane()
    assert pair is not None
    yield pair
    pair[0].close()
    pair[1].close()


def test_replies_keep_apart(ends: tuple[ReplyLane, socket.socket]) -> None:
    lane, worker = ends
    for number, data in ((LANE | 7, b"seven"), (LANE | 8, b"x" * (1 << 15)), (LANE | 9, b"")):
        assert send_reply(worker, number, data)
        assert lane.receive() == (number, data)
        assert lane.receive(wait=False) == (number, data), "who was interrupted leaves it to who reads next"
        lane.drop()
    with pytest.raises(BlockingIOError):
        lane.receive(wait=False)


def test_a_long_reply_is_not_for_the_lane(ends: tuple[ReplyLane, socket.socket]) -> None:
    lane, worker = ends
    assert not send_reply(worker, LANE | 1, b"x" * ((1 << 15) + 1))
    with pytest.raises(BlockingIOError):
        lane.receive(wait=False)


def test_a_worker_never_waits_for_room(ends: tuple[ReplyLane, socket.socket]) -> None:
    _, worker = ends
    sent = 0
    while send_reply(worker, LANE | 1, b"x" * (1 << 15)):
        sent += 1
        assert sent < 10_000
    assert sent >= 2


def test_there_is_one_holder(ends: tuple[ReplyLane, socket.socket]) -> None:
    lane, _ = ends
    first, second = object(), object()
    assert lane.take(first)
    assert not lane.take(second)
    lane.give_back(second)
    assert lane.is_held_by(first)
    lane.hand_over(second, second)
    assert lane.is_held_by(first)
    lane.hand_over(first, second)
    assert lane.is_held_by(second)
    lane.give_back(second)
    assert lane.take(first)


def test_of_many_that_want_it_one_has_it(ends: tuple[ReplyLane, socket.socket]) -> None:
    lane, _ = ends
    start = threading.Barrier(8)
    count = 0

    def work() -> None:
        nonlocal count
        me = object()
        start.wait(BOUND_S)
        for _ in range(2000):
            if lane.take(me):
                before = count
                count = before + 1
                lane.give_back(me)

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(work) for _ in range(8)]
        for future in done:
            future.result(BOUND_S)
    assert count > 0
    assert lane.take(object())


@pytest.mark.parametrize(
    "end", [lambda lane, _: lane.end(), lambda lane, _: lane.close(), lambda _, worker: worker.close()]
)
def test_who_reads_wakes_up_at_the_end(
    ends: tuple[ReplyLane, socket.socket], end: Callable[[ReplyLane, socket.socket], None]
) -> None:
    lane, worker = ends
    holder = object()
    assert lane.take(holder)
    reads = threading.Event()

    def read() -> tuple[int, bytes] | None:
        reads.set()
        return lane.receive()

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(read)
        assert reads.wait(BOUND_S)
        end(lane, worker)
        assert found.result(BOUND_S) is None


def test_it_is_closed_when_its_holder_has_given_it_back(ends: tuple[ReplyLane, socket.socket]) -> None:
    lane, _ = ends
    holder = object()
    assert lane.take(holder)
    lane.close()
    assert lane.fileno() >= 0, "the holder may be in a call to the system with this number"
    lane.give_back(holder)
    assert lane.fileno() == -1
    assert not lane.take(object())
    lane.close()


def test_nobody_is_there(ends: tuple[ReplyLane, socket.socket]) -> None:
    lane, worker = ends
    lane.close()
    assert not send_reply(worker, LANE | 1, b"data")
