"""What worker processes write becomes lines of the log: every line, and no progress bar."""

from __future__ import annotations

import io
import json
import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from omni_core.replicas.loop import run_in
from omni_core.wire.output import WorkerOutput
from omni_core.wire.reactor import Reactor


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)

    @property
    def events(self):
        return [record.omni["event"] for record in self.records]


@pytest.fixture(scope="module")
def reactor():
    reactor = Reactor("omni-output-test")
    yield reactor
    reactor.stop()


def relay(reactor, *chunks):
    """Return the records that come of what a worker writes in these pieces, and its last lines."""
    logger = logging.getLogger("omni_core.wire.output")
    heard, level = Heard(), logger.level
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)

    def write() -> None:
        output = WorkerOutput(reactor, {"rank": 3})
        for chunk in chunks:
            os.write(output.write_fd, chunk)
            output.tail()  # reads what is there
        output.close()
        heard.tail = output.tail()

    try:
        run_in(reactor, write)
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)
    return heard, heard.tail


def bar(**settings):
    """Return what tqdm writes for ten steps."""
    stream = io.StringIO()
    with tqdm(total=settings.pop("total", 10), file=stream, mininterval=0, **settings) as shown:
        for _ in range(10):
            shown.update()
    return stream.getvalue().encode()


BARS = {
    "plain": bar(),
    "described": bar(desc="Loading pipeline components..."),
    "bytes": bar(desc="model.safetensors", unit="B", unit_scale=True, total=10**9),
    "no total": bar(total=None),
    "ascii": bar(ascii=True),
    "gone when done": bar(leave=False),
    "second": bar(position=1),
    "shorter than before": bar().rstrip(b"\n") + b"   \n",
}


@pytest.mark.parametrize("name", BARS)
def test_a_bar_is_no_line(reactor, name):
    heard, last = relay(reactor, b"before\n" + BARS[name] + b"\nafter\n")
    assert heard.events == ["before", "after"]
    assert last == "before\nafter"


@pytest.mark.parametrize("name", BARS)
def test_a_bar_in_pieces_is_no_line(reactor, name):
    """As it comes: a piece for each step."""
    pieces = BARS[name].split(b"\r")
    heard, _ = relay(reactor, pieces[0], *(b"\r" + piece for piece in pieces[1:]), b"\n", b"after\n")
    assert heard.events == ["after"]


@pytest.mark.parametrize("name", BARS)
def test_what_is_written_behind_a_bar_is_a_line(reactor, name):
    """The bar of a pipeline that raises does not end its line."""
    unfinished = BARS[name].rstrip(b"\n")
    heard, last = relay(reactor, unfinished + b"Traceback (most recent call last):\n  File 1\n")
    assert heard.events == ["Traceback (most recent call last):", "  File 1"]
    assert last.startswith("Traceback")


def test_a_log_line_behind_a_bar_keeps_its_fields(reactor):
    line = json.dumps({"event": "hello", "level": "warning", "logger": "x", "number": 7}).encode()
    heard, _ = relay(reactor, BARS["plain"].rstrip(b"\n") + line + b"\n")
    [record] = heard.records
    assert record.omni == {"event": "hello", "number": 7, "worker_logger": "x", "rank": 3}
    assert record.levelname == "WARNING"


ODD_JSON = (
    '{"level": {"a": 1}, "event": "x"}',
    '{"level": ["info"], "event": "x"}',
    '{"level": "info", "event": {"a": 1}}',
    '{"level": "info", "event": null}',
    '{"level": "info", "event": "x", "self": 1, "level2": 2, "exc_info": true, "stack_info": "y", "stacklevel": "z"}',
    '{"level": "info", "event": "x", "": 1, "a b": 2, "extra": {"omni": 3}, "args": [1], "message": "m", "name": 5}',
    '{"level": "info", "event": "x", "number": 1e999, "nan": NaN}',
    '{"level": "info"',
    "{}",
    "{" * 100_000,
    '{"a":' * 20_000 + "1" + "}" * 20_000,
    '{"level": "info", "event": "\\ud800"}',
    '{"number": ' + "9" * 10_000 + "}",
)


@pytest.mark.parametrize("line", ODD_JSON, ids=range(len(ODD_JSON)))
def test_a_line_that_looks_like_our_log_costs_nothing_but_itself(reactor, line):
    text = b"before\n" + line.encode() + b"\nafter\n"
    # No more at a time than a pipe holds.
    heard, _ = relay(reactor, *(text[start : start + 30_000] for start in range(0, len(text), 30_000)))
    assert (heard.events[0], heard.events[-1]) == ("before", "after")
    assert all(record.omni["rank"] == 3 for record in heard.records)


def test_a_home_made_bar_is_what_a_terminal_shows_in_the_end(reactor):
    heard, _ = relay(reactor, b"\rloading 1/3", b"\rloading 2/3", b"\rloading 3/3\n")
    assert heard.events == ["loading 3/3"]


def test_a_bar_without_end_is_not_kept(reactor):
    """Nor is it passed on when it has become too long to be a line."""
    heard, _ = relay(reactor, *[BARS["plain"].rstrip(b"\n") * 50] * 40, b"\n")
    assert heard.events == []


lines = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map("- {}.".format))


@given(lines, st.sampled_from(["\n", "\r\n"]), st.integers(1, 40))
def test_every_other_line_is_passed_on(reactor, text, end, size):
    """In whatever pieces it comes, and however its lines end."""
    data = "".join(f"{line}{end}" for line in text).encode()
    heard, _ = relay(reactor, *(data[at : at + size] for at in range(0, len(data), size)))
    assert heard.events == text
