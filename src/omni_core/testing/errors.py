"""Errors: who gets them, and what they say."""

from __future__ import annotations

import threading

import pytest

from omni_core import OmniRequestOutput
from omni_core.errors import OmniError, RequestError
from omni_core.testing.base import ConformanceBase
from omni_core.testing.bounds import wait_until
from omni_core.testing.injection import Kind, fault


class Errors(ConformanceBase):
    """Errors and their messages."""

    theme = "errors"

    def _run_between_good_ones(self, kind: Kind) -> OmniRequestOutput:
        """Run a request with a fault between two without; check those, and return what became of it."""
        good, other = self.request(seed=1), self.request(seed=2)
        bad = self.request(fault=fault(kind), num_inference_steps=5)
        outputs = self.step(self.shared_engine(), good, bad, other)
        self.assert_right(outputs[0], good)
        self.assert_right(outputs[2], other)
        assert outputs[1].request_id == bad.request_id
        assert outputs[1].finish_reason == "error"
        assert outputs[1].output == {}
        assert outputs[1].images == []
        assert isinstance(outputs[1].error, OmniError)
        return outputs[1]

    def test_a_request_that_raises_fails_alone(self) -> None:
        """Its error has the type and the message of the exception and the request's id; the others finish."""
        output = self._run_between_good_ones("raise")
        with pytest.raises(OmniError, match=r"InjectedError.*injected at step 2") as caught:
            output.raise_for_error()
        assert output.request_id in str(caught.value)

    def test_a_request_that_raises_shows_its_own_traceback(self) -> None:
        """The error carries the worker's traceback, down to the line that raised."""
        self.need_diffusion_worker()
        error = self._run_between_good_ones("raise").error
        assert error is not None
        assert "injection.py" in str(error.worker_traceback)

    def test_not_a_number(self) -> None:
        """A picture that is not numbers is an error that says so, not a black picture."""
        self.need_diffusion_worker()
        assert "not numbers" in str(self._run_between_good_ones("nan").error)

    def test_out_of_memory(self) -> None:
        """Running out of memory fails that request, says so, and the engine goes on."""
        assert "OutOfMemoryError" in str(self._run_between_good_ones("out-of-memory").error)
        self.shared_engine().check_health()
        self.assert_serves(self.shared_engine())

    def test_a_request_that_raises_what_cannot_be_pickled(self) -> None:
        """It fails the request by its name and message all the same."""
        error = self._run_between_good_ones("raise-unpicklable").error
        assert "UnpicklableError" in str(error)
        assert "because it is step 2" in str(error)

    def test_an_argument_of_a_wrong_type(self) -> None:
        """What the pipeline itself refuses fails that request alone."""
        good, bad = self.request(), self.request(extra_args={"max_sequence_length": "long"})
        outputs = self.step(self.shared_engine(), good, bad)
        self.assert_right(outputs[0], good)
        assert "TypeError" in str(outputs[1].error)

    def test_an_argument_that_cannot_be_sent(self) -> None:
        """A request that cannot be pickled fails alone and names the culprit, or is served where nothing is pickled."""
        engine = self.shared_engine()
        good, odd = self.request(), self.request(note={"lock": threading.Lock()})
        outputs = self.step(engine, good, odd)
        self.assert_right(outputs[0], good)
        if outputs[1].error is not None:
            assert "lock" in str(outputs[1].error)
        else:
            assert not any(self.worker_pids(engine)), "a lock cannot have reached another process"
            self.assert_right(outputs[1], odd)
        self.assert_serves(engine)

    def test_many_failures_among_others(self) -> None:
        """Twenty requests that fail at different steps leave twenty others as they are."""
        good = [self.request(seed=seed % 4, num_inference_steps=6) for seed in range(20)]
        bad = [self.request(fault=fault("raise", step=1 + number % 6), num_inference_steps=6) for number in range(20)]
        outputs = self.step(self.shared_engine(), *(one for pair in zip(good, bad, strict=True) for one in pair))
        for request, output in zip(good, outputs[::2], strict=True):
            self.assert_right(output, request)
        for request, output in zip(bad, outputs[1::2], strict=True):
            assert f"injected at step {request.extra_args['fault']['step']}" in str(output.error)
            assert request.request_id in str(output.error)
        self.shared_engine().check_health()

    def test_a_bad_request_is_refused_before_it_is_sent(self) -> None:
        """An unknown keyword is refused at once, with the closest name, and nothing of that call is started."""
        self.need_diffusion_worker()
        engine = self.shared_engine()
        before = engine.stats()
        with pytest.raises(RequestError, match="Did you mean 'num_inference_steps'"):
            engine.step([self.request(), self.request(extra_args={"num_inference_step": 3})], timeout=10.0)
        with pytest.raises(RequestError, match="takes no 'class_labels'"):
            engine.submit(self.request(extra_args={"class_labels": [1]}))
        after = engine.stats()
        assert (after.waiting, after.running, after.ended) == (before.waiting, before.running, before.ended)

    def test_what_is_no_request_is_refused(self) -> None:
        """A string, or a request that is not in a list, is an error that says what to write."""
        engine = self.shared_engine()
        with pytest.raises(RequestError, match="not a str"):
            engine.step(["a red seven"])  # type: ignore[list-item]
        with pytest.raises(RequestError, match=r"write \[request\]"):
            engine.step(self.request())  # type: ignore[arg-type]

    def test_failures_are_counted(self) -> None:
        """`engine.stats()` counts a failed request as an error, and no longer as running."""
        engine = self.shared_engine()
        before = engine.stats().ended
        self.step(engine, self.request(), self.request(fault=fault("raise")))
        wait_until(lambda: engine.stats().running == 0, "no request is counted as running")
        ended = engine.stats().ended
        assert {end: ended[end] - before.get(end, 0) for end in ("finished", "error")} == {"finished": 1, "error": 1}
