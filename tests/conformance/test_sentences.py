"""What the suite says of a test that failed: one plain sentence."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from omni_core.errors import EngineClosedError, WorkerDiedError
from omni_core.testing.bounds import bounded, wait_until
from omni_core.testing.sentences import comparison, what_it_did


def _is(found: object, wanted: object) -> str:
    return comparison("==", found, wanted)


def asserts_with_a_message() -> None:
    raise AssertionError("it never woke up\nassert False")


def raises_nothing() -> None:
    with pytest.raises(EngineClosedError):
        pass


def raises_none_of_two() -> None:
    with pytest.raises((EngineClosedError, WorkerDiedError)):
        pass


def raises_another_message() -> None:
    with pytest.raises(ValueError, match="seven"):
        raise ValueError("it is three")


def raises_an_error() -> None:
    raise WorkerDiedError("The worker was killed.\nIt was not nice.")


def raises_without_words() -> None:
    raise TimeoutError


def hangs() -> None:
    event = threading.Event()
    try:
        bounded(event.wait, "close()", 0.05)
    finally:
        event.set()


def never_comes_true() -> None:
    wait_until(lambda: False, "the workers are gone", 0.02)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (asserts_with_a_message, "it never woke up."),
        (raises_nothing, "nothing was raised, where EngineClosedError was to be."),
        (raises_none_of_two, "nothing was raised, where EngineClosedError or WorkerDiedError was to be."),
        (raises_another_message, "the error says 'it is three', in which 'seven' is not found."),
        (raises_an_error, "WorkerDiedError: The worker was killed."),
        (raises_without_words, "TimeoutError."),
        (hangs, "close() did not return within 0.05 s."),
        (never_comes_true, "not within 0.02 s: the workers are gone."),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_failure_is_put_into_words(broken: Callable[[], None], sentence: str) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # of any kind
        broken()
    assert what_it_did(caught.value) == sentence


def test_an_assertion_is_named_by_its_source() -> None:
    found = {"state": "running"}
    with pytest.raises(AssertionError) as caught:
        assert found["state"] == "done"
    assert what_it_did(caught.value, _is("running", "done")) == "found['state'] is 'running', not 'done'."
    with pytest.raises(AssertionError) as caught:
        assert not (found and "state" in found)
    assert what_it_did(caught.value) == "it does not hold that not (found and 'state' in found)."


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        ("==", "is 3, not 2"),
        ("<", "is 3, and must be less than 2"),
        ("<=", "is 3, and must be no more than 2"),
        (">", "is 3, and must be more than 2"),
        (">=", "is 3, and must be at least 2"),
        ("in", "is 3, which is not in 2"),
        ("not in", "is 3, which is in 2"),
        ("is", "is 3, not 2"),
        ("is not", "is 3"),
        ("!=", "is 3"),
        ("@", "does not hold: 3 @ 2"),
    ],
)
def test_each_comparison_has_words(operator: str, words: str) -> None:
    assert comparison(operator, 3, 2) == words


def test_long_values_are_cut() -> None:
    assert len(comparison("==", "x" * 5000, list(range(5000)))) < 200
