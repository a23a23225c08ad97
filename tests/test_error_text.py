"""Whatever an error does when it is asked what it says, the answer is a text."""

from __future__ import annotations

import pytest

from omni_core.calls import WorkerCall, answer, call_error
from omni_core.error_text import described_error, said
from omni_core.errors import RPCError


class Unspeakable(Exception):
    def __init__(self, inner: BaseException) -> None:
        self.inner = inner

    def __str__(self) -> str:
        raise self.inner


class NoText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307


UNSPEAKABLE = [
    *[Unspeakable(inner()) for inner in (ValueError, SystemExit, GeneratorExit, MemoryError, RecursionError)],
    NoText(),
]


@pytest.mark.parametrize("error", UNSPEAKABLE, ids=lambda error: type(getattr(error, "inner", error)).__name__)
def test_one_that_cannot_be_asked(error: Exception) -> None:
    assert "its message cannot be shown" in said(error)
    assert described_error(error).startswith(f"{type(error).__name__}: (its message cannot be shown")
    told = call_error("paint", error)
    assert isinstance(told, RPCError)
    assert "'paint' raised" in told.message

    class Worker:
        def call(self, *_: object) -> None:
            raise error

    reply = answer(Worker(), WorkerCall(1, "paint"))
    assert reply.error is not None


def test_one_without_a_message() -> None:
    assert described_error(ValueError()) == "ValueError"
    assert described_error(ValueError("no")) == "ValueError: no"
