"""Frames come out as they went in, in order; whatever the other side does, nobody hangs and nothing is left."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_core.wire.channel import Channel
from omni_core.wire.frame import ChannelClosedError, Frame, NoRoomError, SendTimeoutError

needs_memfd = pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux only")
BOUND_S = 30.0
Pair = tuple[Channel, Channel]


def connect(**options: Any) -> Pair:
    left, right = socket.socketpair()
    return Channel(left, **options), Channel(right, **options)


@pytest.fixture
def pair() -> Iterator[Pair]:
    channels = connect()
    yield channels
    for channel in channels:
        channel.close()


def no_memory(size: int) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def pattern(size: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def cross(sender: Channel, receiver: Channel, frame: Frame, by: Callable[[Channel], Frame] = Channel.recv) -> Frame:
    """Send in one thread and receive in this one."""
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(sender.send, frame)
        found = by(receiver)
        sent.result(BOUND_S)
    return found


def drain_one(channel: Channel) -> Frame:
    """Receive as the driver does: poll, then take what is there."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        assert poll.poll(BOUND_S * 1e3), "nothing came"
        frames = channel.drain()
        if frames:
            assert len(frames) == 1
            return frames[0]


def same(left: Frame, right: Frame) -> bool:
    return (
        left.number == right.number
        and bytes(left.data) == bytes(right.data)
        and [bytes(memoryview(part).cast("B")) for part in left.buffers]
        == [bytes(memoryview(part).cast("B")) for part in right.buffers]
    )


SIZES = st.sampled_from([1, 100, 4096, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 1 << 17, 300_000, 1_500_000])
FRAMES = st.builds(
    lambda number, data, sizes: Frame(number, pattern(data).tobytes(), [pattern(size, 2) for size in sizes]),
    st.integers(0, (1 << 64) - 2),
    st.just(0) | SIZES,
    st.lists(SIZES, max_size=5),
)


@pytest.mark.parametrize("by", [Channel.recv, drain_one], ids=["recv", "drain"])
@pytest.mark.parametrize("options", [{}, {"make": no_memory}], ids=["shared", "stream"])
def test_frames_of_all_sizes(by: Callable[[Channel], Frame], options: dict[str, Any]) -> None:
    channels = connect(**options)

    @settings(max_examples=40, deadline=None)
    @given(FRAMES, st.booleans())
    def check(frame: Frame, backwards: bool) -> None:
        sender, receiver = reversed(channels) if backwards else channels
        assert same(cross(sender, receiver, frame, by), frame)

    check()
    for channel in channels:
        channel.close()


def test_many_small_frames_come_in_order_out_of_one_drain(pair: Pair) -> None:
    for number in range(100):
        pair[0].send(Frame(number, b"x" * number))
    found = pair[1].drain()
    assert [(frame.number, len(frame.data)) for frame in found] == [(number, number) for number in range(100)]
    assert pair[1].drain() == []  # and it does not wait for more


def test_half_a_frame_waits_for_the_other_half() -> None:
    ours, theirs = socket.socketpair()
    recorder, listener = socket.socketpair()
    Channel(recorder, make=no_memory).send(Frame(5, b"data", [b"buffer" * 10]))
    whole = listener.recv(10_000)
    channel = Channel(ours)
    for index in range(len(whole) - 1):
        theirs.send(whole[index : index + 1])
        assert channel.drain() == []
    theirs.send(whole[-1:] + whole)
    first, second = channel.drain()
    assert same(first, second)
    assert (first.number, first.data, bytes(first.buffers[0])) == (5, b"data", b"buffer" * 10)
    for one in (ours, theirs, recorder, listener):
        one.close()


@pytest.mark.parametrize("data_size", [10, 500_000])
def test_what_follows_a_large_frame_is_not_taken_for_its_part(data_size: int) -> None:
    pair = connect(make=no_memory)
    with ThreadPoolExecutor(1) as pool:
        frames = [Frame(number, b"d" * data_size, [pattern(400_000), b"", b"tail"]) for number in range(5)]
        sent = pool.submit(lambda: [pair[0].send(frame) for frame in frames])
        assert all(same(pair[1].recv(), frame) for frame in frames)
        sent.result(BOUND_S)
    for channel in pair:
        channel.close()


def test_two_threads_that_send_at_once_do_not_mix_their_frames(pair: Pair) -> None:
    def send(thread: int) -> None:
        for index in range(60):
            size = [10, 70_000, 300_000][index % 3]
            pair[0].send(Frame(thread * 1000 + index, bytes([thread]) * size, [np.full(size, thread, np.uint8)]))

    with ThreadPoolExecutor(3) as pool:
        sending = [pool.submit(send, thread) for thread in (1, 2, 3)]
        numbers = []
        for _ in range(180):
            frame = pair[1].recv()
            thread = frame.number // 1000
            assert set(frame.data) == {thread}
            assert (np.asarray(frame.buffers[0]) == thread).all()
            numbers.append(frame.number)
        for one in sending:
            one.result(BOUND_S)
    for thread in (1, 2, 3):
        assert [number for number in numbers if number // 1000 == thread] == [thread * 1000 + i for i in range(60)]


# Shared memory.


@needs_memfd
def test_a_block_is_used_again_once_nobody_holds_it_and_never_before(pair: Pair) -> None:
    sender, receiver = pair
    held = []
    for value in range(10):
        frame = cross(sender, receiver, Frame(0, b"", [np.full(200_000, value, np.uint8)]))
        if value % 2:
            held.append((value, frame.buffers[0][50:]))
        del frame
        gc.collect()
        cross(receiver, sender, Frame(0))
    assert all((part == value).all() for value, part in held)
    assert sender._pool.num_bytes <= 7 * 212_992  # the five that are held, one on its way back, one in use
    held.clear()
    gc.collect()
    receiver.flush_releases()
    assert sender.drain() == []
    assert sender._pool.num_in_use == 0


@needs_memfd
def test_releases_come_with_the_next_frame_from_any_thread(pair: Pair) -> None:
    sender, receiver = pair
    frames = [cross(sender, receiver, Frame(number, b"", [pattern(100_000)])) for number in range(8)]
    assert sender._pool.num_in_use == 8
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: frames.pop(), range(8)))
    gc.collect()
    cross(receiver, sender, Frame(1))
    sender.send(Frame(2))
    assert sender._pool.num_in_use == 0


@needs_memfd
def test_the_receiver_forgets_blocks_that_were_given_up(pair: Pair) -> None:
    limited, receiver = connect(shared_memory_bytes=1 << 20)
    before = num_mappings()
    for size in (900_000, 500_000, 70_000, 1_000_000):
        assert same(cross(limited, receiver, Frame(1, b"", [pattern(size)])), Frame(1, b"", [pattern(size)]))
        gc.collect()
        receiver.flush_releases()
        limited.drain()
    limited.send(Frame(1))
    receiver.recv()
    assert limited._pool.num_bytes <= 1 << 20
    assert num_mappings() - before == 2 * len(limited._pool._idle)  # here both sides are in one process
    limited.close()
    receiver.close()


@needs_memfd
def test_a_frame_without_buffers_also_says_which_blocks_were_given_up(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omni_core.wire.shared_memory._MOST_IDLE_BLOCKS", 1)
    sender, receiver = pair
    cross(sender, receiver, Frame(1, b"", [pattern(70_000)] * 3))
    gc.collect()
    receiver.flush_releases()
    assert sender.drain() == []
    assert len(receiver._reader._views._blocks) == 3
    cross(sender, receiver, Frame(2))
    assert len(receiver._reader._views._blocks) == 1


@needs_memfd
def test_above_the_limit_the_stream_carries_it() -> None:
    sender, receiver = connect(shared_memory_bytes=1 << 20)
    held = [cross(sender, receiver, Frame(n, b"", [pattern(600_000, n)])) for n in range(4)]
    assert [type(frame.buffers[0]) for frame in held] == [np.ndarray, bytearray, bytearray, bytearray]
    assert all(same(frame, Frame(n, b"", [pattern(600_000, n)])) for n, frame in enumerate(held))
    sender.close()
    receiver.close()


@needs_memfd
def test_more_buffers_than_files_fit_into_one_message(pair: Pair) -> None:
    frame = Frame(1, b"", [pattern(70_000, seed) for seed in range(300)])
    assert same(cross(*pair, frame), frame)


@needs_memfd
def test_what_was_received_can_be_written_to_and_outlives_the_channel() -> None:
    sender, receiver = connect()
    view = cross(sender, receiver, Frame(0, b"", [np.zeros(100_000, np.uint8)])).buffers[0]
    sender.close()
    receiver.close()
    view[:] = 3
    assert view.sum() == 300_000


def num_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def num_mappings() -> int:
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("/memfd:omni")


@needs_memfd
def test_nothing_is_left_after_close() -> None:
    gc.collect()
    before = num_files(), num_mappings()
    sender, receiver = connect()
    for size in (70_000, 300_000, 5_000_000):
        cross(sender, receiver, Frame(0, b"", [pattern(size)] * 3))
        cross(receiver, sender, Frame(0, b"", [pattern(size)] * 3))
    assert num_files() == before[0] + 2  # the sockets: a block needs no open file
    sender.send(Frame(0, b"", [pattern(80_000)]))  # its file is still in the socket
    for channel in (sender, receiver, sender):
        channel.close()
    del sender, receiver, channel
    gc.collect()
    assert (num_files(), num_mappings()) == before


@needs_memfd
def test_files_that_came_along_are_not_inherited(pair: Pair) -> None:
    added: list[bool] = []
    views = pair[1]._reader._views
    add = views.add

    def note(number: int, fd: int) -> None:
        added.append(os.get_inheritable(fd))
        add(number, fd)

    views.add = note  # type: ignore[method-assign]
    cross(*pair, Frame(0, b"", [pattern(100_000)]))
    assert added == [False]


# Ends.


def test_the_end_is_seen_after_all_that_was_sent(pair: Pair) -> None:
    pair[0].send(Frame(1))
    pair[0].send(Frame(2))
    pair[0].close()
    assert pair[1].recv().number == 1
    assert pair[1].recv().number == 2
    for receive in (pair[1].recv, pair[1].drain):
        with pytest.raises(ChannelClosedError):
            receive()
    with pytest.raises(ChannelClosedError):
        pair[1].send(Frame(3))
    assert pair[0].fileno() == -1
    with pytest.raises(ChannelClosedError):
        pair[0].send(Frame(4))
    with pytest.raises(ChannelClosedError):
        pair[0].recv()


def test_shutdown_of_one_direction_leaves_the_other(pair: Pair) -> None:
    pair[0].shutdown_send()
    with pytest.raises(ChannelClosedError):
        pair[1].recv()
    pair[1].send(Frame(1))
    assert pair[0].recv().number == 1


def test_close_wakes_who_receives_and_who_sends() -> None:
    left, right = connect(make=no_memory, send_timeout_s=BOUND_S)
    with ThreadPoolExecutor(2) as pool:
        receiving = pool.submit(left.recv)
        sending = pool.submit(left.send, Frame(0, bytes(10_000_000)))
        poll = select.poll()
        poll.register(right.fileno(), select.POLLIN)
        assert poll.poll(BOUND_S * 1e3)
        left.close()
        for waiting in (receiving, sending):
            with pytest.raises(ChannelClosedError):
                waiting.result(BOUND_S)
    right.close()


@pytest.mark.alone
def test_who_never_reads_is_given_up_and_never_gets_half_a_frame_for_a_whole() -> None:
    sender, stopped = connect(make=no_memory, send_timeout_s=0.3)
    with pytest.raises(SendTimeoutError):
        sender.send(Frame(1, bytes(10_000_000)))
    start = time.monotonic()
    with pytest.raises(ChannelClosedError, match="earlier message"):
        sender.send(Frame(2, b"would be taken for a part of the first"))
    assert time.monotonic() - start < 0.2
    with pytest.raises(ChannelClosedError):
        stopped.recv()
    stopped.send(Frame(3))
    assert sender.recv().number == 3
    sender.close()
    stopped.close()


@needs_memfd
def test_small_frames_fill_the_socket_and_no_thread_waits_longer_than_the_bound() -> None:
    sender, stopped = connect(send_timeout_s=0.3)

    def fill() -> None:
        while True:
            sender.send(Frame(0, b"x" * 1000))

    with ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(fill) for _ in range(4)]
        start = time.monotonic()
        errors = [thread.exception(BOUND_S) for thread in threads]
    assert time.monotonic() - start < 5
    assert sorted(type(error).__name__ for error in errors) == ["ChannelClosedError"] * 3 + ["SendTimeoutError"]
    sender.close()
    stopped.close()


HEADER = struct.Struct("<4sIQQII")


@pytest.mark.parametrize(
    "wrong",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEADER.pack(b"omnx", 0, 1, 0, 0, 0),
        HEADER.pack(b"omni", 0, 1, 1 << 50, 0, 0),
        HEADER.pack(b"omni", 1 << 31, 1, 5, 0, 0),
        HEADER.pack(b"omni", 0, 1, 5, 1 << 31, 0),
        HEADER.pack(b"omni", 1, 1, 0, 0, 0) + struct.pack("<QIB", 1 << 60, 0, 0),
        HEADER.pack(b"omni", 1, 1, 0, 0, 0) + struct.pack("<QIB", 100, 7, 0),
        HEADER.pack(b"omni", 1, 1, 0, 0, 0) + struct.pack("<QIB", 100, 7, 1),
    ],
    ids=[
        "text",
        "a wrong mark",
        "data",
        "buffers",
        "numbers",
        "a buffer",
        "an unknown block",
        "a block without its file",
    ],
)
def test_what_is_no_frame_is_an_error_and_allocates_nothing(wrong: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.send(wrong)
    channel = Channel(ours)
    with pytest.raises(ChannelClosedError, match="frame"):
        channel.recv()
    channel.close()
    theirs.close()


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=200), st.booleans())
def test_whatever_comes_ends_in_frames_or_an_error(noise: bytes, marked: bool) -> None:
    ours, theirs = socket.socketpair()
    theirs.send(b"omni" + noise if marked else noise)
    theirs.close()
    channel = Channel(ours)
    with pytest.raises(ChannelClosedError):
        while True:
            channel.recv()
    channel.close()


def test_a_buffer_that_is_not_contiguous_is_refused_before_anything_is_sent(pair: Pair) -> None:
    with pytest.raises(BufferError):
        pair[0].send(Frame(1, b"", [pickle.PickleBuffer(np.zeros((4, 4))[:, ::2])]))
    pair[0].send(Frame(2))
    assert pair[1].recv().number == 2


# Between processes.


ECHO = """
import socket, sys
from omni_core.wire.channel import Channel
from omni_core.wire.frame import ChannelClosedError
channel = Channel(socket.socket(fileno=int(sys.argv[1])))
try:
    while True:
        channel.send(channel.recv())
except ChannelClosedError:
    pass
"""
SEND_LARGE = """
import socket, sys
from omni_core.wire.channel import Channel
from omni_core.wire.frame import Frame
channel = Channel(socket.socket(fileno=int(sys.argv[1])), shared_memory_bytes=0)
channel.send(Frame(1, bytes(100_000_000)))
"""


def start(code: str, **options: Any) -> tuple[subprocess.Popen[bytes], Channel]:
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment
    )
    theirs.close()
    return process, Channel(ours, **options)


def end(process: subprocess.Popen[bytes], channel: Channel) -> None:
    channel.close()
    process.wait(BOUND_S)


def test_another_process_echoes_frames_in_both_directions() -> None:
    process, channel = start(ECHO)
    for size in (10, 70_000, 3_000_000):
        for seed in range(4):
            frame = Frame(seed, b"abc", [pattern(size, seed)])
            channel.send(frame)
            assert same(drain_one(channel), frame)
    end(process, channel)


def test_a_peer_that_is_killed_in_the_middle_of_a_frame() -> None:
    process, channel = start(SEND_LARGE)
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    assert poll.poll(BOUND_S * 1e3)
    assert channel.drain() == []
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ChannelClosedError):
        channel.recv()
    end(process, channel)


@needs_memfd
def test_a_peer_that_is_killed_leaves_no_shared_memory_and_no_file() -> None:
    gc.collect()
    before = num_files(), num_mappings(), sorted(os.listdir("/dev/shm"))
    process, channel = start(ECHO)
    channel.send(Frame(1, b"", [pattern(5_000_000)]))
    frame = channel.recv()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ChannelClosedError):
        while True:
            channel.send(Frame(2))
            channel.recv()
    assert same(frame, Frame(1, b"", [pattern(5_000_000)]))  # still ours
    end(process, channel)
    del frame, channel, process
    gc.collect()
    assert (num_files(), num_mappings(), sorted(os.listdir("/dev/shm"))) == before


def test_a_stopped_peer_does_not_hold_the_sender_for_ever() -> None:
    process, channel = start(ECHO, send_timeout_s=0.3, make=no_memory)
    channel.send(Frame(1))
    channel.recv()
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(SendTimeoutError):
        channel.send(Frame(2, bytes(10_000_000)))
    os.kill(process.pid, signal.SIGCONT)
    end(process, channel)


def test_threads_are_not_needed() -> None:
    before = threading.active_count()
    pair = connect()
    assert threading.active_count() == before
    for channel in pair:
        channel.close()


def received_though_interrupted(size: int, handler: Callable[[Channel], None]) -> tuple[bool, list[Frame]]:
    """Call a signal handler while a frame of `size` bytes waits for room; return whether it raised, and what came."""
    sender, receiver = connect(shared_memory_bytes=0)
    main = threading.main_thread().ident
    assert main is not None
    waits = threading.Event()
    wait_for_room = sender._wait_for_room

    def wait() -> None:
        waits.set()
        wait_for_room()

    sender._wait_for_room = wait  # type: ignore[method-assign]

    def interrupt_and_receive() -> list[Frame]:
        assert waits.wait(BOUND_S)
        signal.pthread_kill(main, signal.SIGUSR1)
        return [receiver.recv(), receiver.recv()]

    previous = signal.signal(signal.SIGUSR1, lambda *_: handler(sender))
    try:
        with ThreadPoolExecutor(1) as pool:
            received = pool.submit(interrupt_and_receive)
            has_raised = False
            try:
                sender.send(Frame(5, b"x" * size))
            except KeyboardInterrupt:
                has_raised = True
            sender.send(Frame(6, b"next"))
            return has_raised, received.result(BOUND_S)
    finally:
        signal.signal(signal.SIGUSR1, previous)
        sender.close()
        receiver.close()


@pytest.mark.parametrize("size", [1 << 20, 8 << 20])
def test_an_interrupt_amid_a_message_comes_after_it(size: int) -> None:
    """Half a message would be the last thing that is ever sent."""

    def handler(_: Channel) -> None:
        raise KeyboardInterrupt

    has_raised, (first, second) = received_though_interrupted(size, handler)
    assert has_raised
    assert (first.number, len(first.data), second.data) == (5, size, b"next")


@pytest.mark.parametrize("more", [b"", b"x" * (1 << 20)], ids=["small", "large"])
def test_a_signal_handler_that_sends_amid_a_message_is_refused(more: bytes) -> None:
    """It would wait for its own thread, or put its message into the middle of the other."""
    refused: list[BaseException] = []

    def handler(sender: Channel) -> None:
        try:
            sender.send(Frame(7, more))
        except NoRoomError as error:
            refused.append(error)

    has_raised, (first, second) = received_though_interrupted(8 << 20, handler)
    assert (has_raised, len(refused)) == (False, 1)
    assert (first.number, len(first.data), second.data) == (5, 8 << 20, b"next")
