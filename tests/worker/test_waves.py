"""What one call of a worker runs and when it comes back, counted in forward passes of the denoiser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import greenlet
import pytest

from omni_core.config import OmniDiffusionConfig
from omni_core.errors import RequestError
from omni_core.outputs import SchedulerOutput, StepOutput
from omni_core.request import OmniDiffusionRequest
from omni_core.worker.worker import DiffusionWorker
from small_pipelines import CASES

NAME = "dit"
MANY = 8


class Session:
    """A worker, the number of its forward passes, and what it has told."""

    def __init__(self) -> None:
        self.worker = DiffusionWorker(OmniDiffusionConfig(), pipeline=CASES[NAME].build())
        self.pipeline = self.worker.pipeline
        self.forwards = 0
        self.pipeline.transformer.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.forwards += 1

    def step(self, *waves: tuple[str, ...], new: Any = (), ended: Any = None) -> StepOutput:
        return self.worker.execute_step(SchedulerOutput(list(new), ended or {}, list(waves)))

    def waves(self, *waves: tuple[str, ...], **more: Any) -> tuple[int, list[str]]:
        """Return how many waves were run, by their forward passes, and who ended."""
        done = self.step(*waves, **more)
        return len(done.forwards), [output.request_id for output in done.finished]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A worker that decodes pictures between two forward passes."""
    monkeypatch.setattr("omni_core.worker.model_runner.has_room_for_side_thread", lambda _device: False)
    made = Session()
    yield made
    made.worker.close()


@pytest.fixture
def side_session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A worker that decodes pictures beside the forward passes."""
    monkeypatch.setattr("omni_core.worker.model_runner.has_room_for_side_thread", lambda _device: True)
    made = Session()
    yield made
    made.worker.close()


def request(name: str, steps: int, **fields: Any) -> OmniDiffusionRequest:
    case = CASES[NAME]
    values = {**case.fields, "output_type": "np", "num_inference_steps": steps, "seed": 1, "request_id": name}
    extra = {**case.extra_args, **fields.pop("extra_args", {})}
    return OmniDiffusionRequest(**{**values, **fields}, extra_args=extra)


# --- when a call comes back ------------------------------------------------------------------------------------


def test_a_call_in_which_nothing_ends_runs_all_its_waves(session: Session) -> None:
    both = ("a", "b")
    assert session.waves(*[both] * MANY, new=[request("a", 100), request("b", 100)]) == (MANY, [])


def test_a_call_comes_back_in_the_wave_in_which_a_request_ends(session: Session) -> None:
    both = ("short", "long")
    assert session.waves(*[both] * MANY, new=[request("long", 100), request("short", 3)]) == (3, ["short"])
    assert session.waves(*[both] * MANY) == (MANY, [])


def test_a_call_comes_back_in_the_wave_in_which_a_request_fails(session: Session) -> None:
    bad = request("bad", 100, extra_args={"class_labels": [5000]})
    both = ("bad", "good")
    assert session.waves(*[both] * MANY, new=[request("good", 100), bad]) == (1, ["bad"])
    assert session.waves(*[both] * MANY) == (MANY, [])


def test_a_call_comes_back_when_a_request_fails_at_its_start(session: Session) -> None:
    bad = request("bad", 100, extra_args={"class_labels": "no number"})
    assert session.waves(*[("bad", "good")] * MANY, new=[request("good", 100), bad]) == (1, ["bad"])


@pytest.mark.parametrize("reason", ["aborted", "timeout"])
def test_an_end_from_outside_is_told_before_any_wave(session: Session, reason: str) -> None:
    both = ("a", "b")
    session.step(both, new=[request("a", 100), request("b", 100)])
    assert session.waves(*[both] * MANY, ended={"a": reason}) == (0, ["a"])
    assert session.waves(*[both] * MANY) == (MANY, [])


def test_ends_from_outside_do_not_stop_the_others(session: Session) -> None:
    """However fast requests come and are aborted, every second call runs a wave."""
    session.step(("long",), new=[request("long", 100)])
    ran = []
    for number in range(6):
        session.step(new=[request(f"r{number}", 100)])
        ran.append(session.waves(*[("long",)] * MANY, ended={f"r{number}": "aborted"})[0])
    assert ran == [0, 1, 0, 1, 0, 1]


def test_an_interrupt_that_came_before_the_call_holds(session: Session) -> None:
    session.step(("a",), new=[request("a", 100)])
    session.worker.interrupt()
    assert session.waves(*[("a",)] * MANY) == (1, [])
    assert session.waves(*[("a",)] * MANY) == (MANY, [])


class SlowDecode:
    """A picture that is decoded when it is told to be."""

    def __init__(self, session: Session) -> None:
        self.release = threading.Event()
        self.began = threading.Event()
        self._decode = session.pipeline.vae.decode
        session.pipeline.vae.decode = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.began.set()
        assert self.release.wait(30)
        return self._decode(*args, **kwargs)


def test_a_picture_that_is_decoded_meanwhile_ends_the_call(side_session: Session) -> None:
    slow = SlowDecode(side_session)
    both = ("short", "long")
    side_session.step(*[both] * 2, new=[request("long", 100), request("short", 2)])
    assert slow.began.wait(30)
    before = side_session.forwards

    def release_in_the_third(*_: Any) -> None:
        if side_session.forwards == before + 3:
            slow.release.set()
            for future in list(side_session.worker._runner._side._open):  # type: ignore[union-attr]
                future.result(30)

    side_session.pipeline.transformer.register_forward_hook(release_in_the_third)
    assert side_session.waves(*[both] * MANY) == (3, ["short"])


def test_an_interrupt_is_not_lost_while_only_an_autoencoder_is_at_work(side_session: Session) -> None:
    slow = SlowDecode(side_session)
    side_session.step(*[("a",)] * 2, new=[request("a", 2)])
    assert slow.began.wait(30)
    threading.Timer(0.05, side_session.worker.interrupt).start()
    assert side_session.waves(*[("a",)] * MANY) == (0, []), "it waits on though it was asked to come back"
    # And it is not kept for the next call, which would then wait for nothing and be asked again and again.
    slow.release.set()
    assert side_session.waves(*[("a",)] * MANY) == (0, ["a"])


# --- what is odd in a call -------------------------------------------------------------------------------------


def test_waves_and_ends_that_name_nobody_who_is_here(session: Session) -> None:
    assert session.waves() == (0, [])
    assert session.waves((), ("nobody",), ended={"nobody": "aborted"}) == (0, [])
    assert session.waves(("a", "nobody"), new=[request("a", 100)]) == (1, [])


def test_a_request_that_a_wave_names_twice_advances_once(session: Session) -> None:
    expected = session.worker.execute_model([request("a", 4)])[0].raise_for_error().output["images"]
    outputs: list[Any] = []
    session.step(new=[request("a", 4)])
    for _ in range(10):
        outputs += session.step(("a", "a", "a")).finished
        if outputs:
            break
    assert outputs[0].raise_for_error().metrics.num_steps == 4
    assert (outputs[0].output["images"] == expected).all()


@pytest.mark.parametrize("how", ["running", "twice", "asleep"])
def test_an_id_in_use_is_refused_before_anything_runs(session: Session, how: str) -> None:
    session.step(("a",), new=[request("a", 100)])
    before = session.forwards
    new = [request("b", 100), request("b" if how == "twice" else "a", 100)]
    if how == "asleep":
        session.worker.sleep(1)
    with pytest.raises(RequestError, match=r"'[ab]'.* request_id"):
        session.step(("a", "b"), new=new)
    if how == "asleep":
        session.worker.wake_up()
    assert session.forwards == before
    assert session.waves(("a", "b"), ("a", "b")) == (2, []), "the one that ran goes on; the other is not there"


def test_whole_requests_of_one_id_are_refused_before_anything_runs(session: Session) -> None:
    with pytest.raises(RequestError, match=r"Two of the requests have the id 'a'"):
        session.worker.execute_model([request("a", 3), request("b", 3), request("a", 3)])
    assert session.forwards == 0
    assert session.worker.execute_model([]) == []
    assert [one.request_id for one in session.worker.execute_model([request("b", 3), request("a", 3)])] == ["b", "a"]


def test_a_pipeline_that_gives_control_away_fails_instead_of_standing_still(session: Session) -> None:
    encode = session.pipeline.scheduler.set_timesteps

    def switches(*args: Any, **kwargs: Any) -> Any:
        parent = greenlet.getcurrent().parent
        if parent is not None:
            parent.switch()
        return encode(*args, **kwargs)

    session.pipeline.scheduler.set_timesteps = switches
    outputs = session.worker.execute_model([request("a", 3)])
    assert outputs[0].error is not None
    assert "outside of a denoiser call" in outputs[0].error.message


def test_nothing_runs_any_more_after_a_call_that_raised(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes its requests for lost, and may give their ids to new ones."""
    session.step(("a",), new=[request("a", 100)])
    with monkeypatch.context() as patch:
        patch.setattr(session.worker._runner, "_group", lambda _tasks: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.step(("a",))
    assert session.waves(("a",), new=[request("a", 100)]) == (1, [])
