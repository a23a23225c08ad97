"""The life cycle of a replica, with a clock and workers that do what a test says."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from omni_core.errors import ModelLoadError, OmniError, RPCError, StartupError, WorkerDiedError
from omni_core.outputs import SchedulerOutput, StepOutput
from omni_core.replicas.options import ReplicaOptions
from omni_core.request import OmniDiffusionRequest
from replicas.fakes import FakeLoop, FakeReplica

STEP = SchedulerOutput(new_requests=[OmniDiffusionRequest(request_id="r")], waves=[("r",)])
NEXT_STEP = SchedulerOutput(waves=[("r",)])


def ready(ranks: int = 1, **more: Any) -> FakeReplica:
    replica = FakeReplica(FakeLoop(), ranks, **more)
    replica.start()
    replica.load()
    assert replica.is_ready
    return replica


def error_of(future: Future[Any]) -> BaseException:
    error = future.exception(0)
    assert error is not None
    return error


def test_it_is_ready_when_all_ranks_are() -> None:
    replica = FakeReplica(FakeLoop(), 2)
    replica.start()
    assert not replica.is_ready
    with pytest.raises(WorkerDiedError, match="is starting"):
        replica.call("stats")
    replica.rank(1).loaded(None)
    assert not replica.is_ready
    replica.rank(0).loaded(None)
    assert replica.is_ready
    replica.first_start.result(0)


def test_a_model_that_cannot_be_loaded_is_told_and_not_tried_again() -> None:
    replica = FakeReplica(FakeLoop(), 2)
    replica.start()
    replica.rank(0).loaded(ModelLoadError("no such file"))
    assert isinstance(error_of(replica.first_start), ModelLoadError)
    replica.loop.advance(3600)
    assert (replica.starts, replica.state) == (1, "failed")


@pytest.mark.parametrize("error", [OSError("too many open files"), StartupError("no server")])
def test_workers_that_cannot_be_started(error: Any) -> None:
    replica = FakeReplica(FakeLoop())
    replica.cannot_start = error
    replica.start()
    assert "could not be started" in str(error_of(replica.first_start))


def test_a_start_that_takes_too_long_is_ended() -> None:
    replica = FakeReplica(FakeLoop(), startup_timeout_s=50)
    replica.start()
    replica.loop.advance(49)
    assert not replica.first_start.done()
    replica.loop.advance(2)
    assert "startup_timeout_s = 50 s" in str(error_of(replica.first_start))
    assert replica.made[0].has_exited


def test_a_start_does_not_count_while_its_workers_wait_for_a_place() -> None:
    replica = FakeReplica(FakeLoop(), startup_timeout_s=50)
    replica.start()
    replica.loop.advance(40)
    replica.start_clock.hold()
    assert replica.start_clock.due is None
    replica.loop.advance(3600)
    assert not replica.first_start.done()
    replica.start_clock.go_on()
    replica.start_clock.go_on()
    assert replica.start_clock.due == replica.loop.time() + 50
    replica.loop.advance(49)
    assert not replica.first_start.done()
    replica.loop.advance(2)
    assert "startup_timeout_s = 50 s" in str(error_of(replica.first_start))
    # A start that is over is not begun anew.
    replica.start_clock.go_on()
    assert replica.start_clock.due is None


def test_a_clock_that_is_held_stands_still_for_one_start_alone() -> None:
    replica = ready()
    replica.rank().declare_dead("ended")
    replica.loop.advance(0.1)
    assert replica.starts == 2
    replica.start_clock.hold()
    replica.rank().declare_dead("ended")
    replica.loop.advance(1)
    assert replica.starts == 3
    assert replica.start_clock.due is not None


def test_callers_hear_of_a_death_before_the_others_are_killed() -> None:
    replica = ready(2)
    told: list[str] = []
    for future in replica.call("stats"):
        future.add_done_callback(lambda done: replica.log.append(type(error_of(done)).__name__))
    replica.log.append("death of rank 1")
    replica.rank(1).ends()
    assert replica.log[0] == "death of rank 1"
    assert replica.log.index("WorkerDiedError") < replica.log.index("rank 1 killed")
    assert replica.log.count("WorkerDiedError") == 2
    assert replica.log[-1] == "rank 0 killed"
    assert told == []


def test_after_a_death_it_starts_at_once_then_ever_more_slowly_and_a_step_makes_all_well() -> None:
    replica = ready(options=ReplicaOptions(max_failures=3, max_backoff_s=1.0))
    waits = []
    for _ in range(6):
        replica.rank().ends()
        waited = 0.0
        while not replica.workers:
            replica.loop.advance(0.125)
            waited += 0.125
        waits.append(waited)
        assert replica.state in ("restarting", "failed")
        replica.load()
    assert waits == [0.125, 0.25, 0.5, 1.0, 1.0, 1.0]
    assert replica.num_restarts == 6
    done = replica.execute_step(STEP)
    replica.rank().answer(StepOutput())
    assert done.result(0) == StepOutput()
    replica.rank().ends()
    replica.loop.advance(0)
    assert replica.workers, "started again at once"


def test_too_many_failures_in_a_row_make_it_failed_but_it_is_tried_all_the_same() -> None:
    replica = ready(options=ReplicaOptions(max_failures=2, max_backoff_s=1.0))
    for _ in range(3):
        replica.rank().ends()
        state = replica.state
        replica.loop.advance(1.0)
        replica.load()
    assert state == "failed"
    assert replica.is_ready
    assert replica.error is None


def test_deaths_in_steps_are_no_failures_of_the_replica() -> None:
    replica = ready(options=ReplicaOptions(max_failures=1))
    for _ in range(10):
        step = replica.execute_step(STEP)
        replica.rank().ends()
        assert isinstance(error_of(step), WorkerDiedError)
        replica.loop.advance(0)
        assert replica.state == "restarting"
        replica.load()
        assert replica.is_ready


def test_workers_that_take_the_place_of_sleeping_ones_sleep() -> None:
    replica = ready(2)
    replica.sleep_level = 2
    replica.rank().ends()
    replica.loop.advance(0)
    replica.load()
    assert [list(replica.rank(number).calls.values()) for number in range(2)] == [["sleep"], ["sleep"]]


def test_a_rank_that_raises_in_a_step_costs_the_replica() -> None:
    replica = ready(2)
    step = replica.execute_step(STEP)
    replica.rank(0).answer(StepOutput())
    assert not step.done()
    replica.rank(1).raises("out of step")
    assert not replica.is_ready, "nobody may call it any more"
    replica.loop.advance(1)
    assert "Rank 1 of replica 0 raised in a step" in str(error_of(step))
    assert (replica.starts, replica.is_ready) == (2, False)
    replica.load()
    assert replica.is_ready


def test_a_death_shortly_after_is_the_cause_of_a_rank_that_raised() -> None:
    replica = ready(2)
    step = replica.execute_step(STEP)
    replica.rank(1).raises("connection lost")
    replica.loop.advance(0.2)
    assert not step.done()
    replica.rank(0).ends("was killed by SIGSEGV")
    replica.loop.advance(1)
    assert "worker 0 of replica 0, was killed by SIGSEGV" in str(error_of(step))


def test_ranks_that_wait_for_one_that_raised_in_a_call_are_released() -> None:
    replica = ready(2, options=ReplicaOptions(collective_grace_s=5))
    raised, waits = replica.call("gather")
    replica.rank(0).raises()
    assert isinstance(error_of(raised), RPCError)
    replica.loop.advance(4.9)
    assert not waits.done()
    replica.loop.advance(0.2)
    assert "collective_grace_s" in str(error_of(waits))


def test_a_rank_that_raises_alone_and_is_alone_is_no_matter() -> None:
    replica = ready()
    [call] = replica.call("oh")
    replica.rank().raises()
    assert isinstance(error_of(call), RPCError)
    replica.loop.advance(60)
    assert replica.starts == 1


def test_a_step_of_requests_that_those_who_died_between_two_steps_had_fails() -> None:
    replica = ready()
    step = replica.execute_step(STEP)
    replica.rank().answer(StepOutput())
    step.result(0)
    replica.rank().ends()
    replica.loop.advance(0)
    replica.load()
    assert isinstance(error_of(replica.execute_step(NEXT_STEP)), WorkerDiedError)
    again = replica.execute_step(STEP)
    replica.rank().answer(StepOutput())
    again.result(0)


def test_a_step_of_new_requests_goes_on_after_a_death_between_two() -> None:
    replica = ready()
    replica.rank().ends()
    replica.loop.advance(0)
    replica.load()
    step = replica.execute_step(STEP)
    replica.rank().answer(StepOutput())
    step.result(0)


def test_a_step_that_takes_too_long_is_given_up() -> None:
    replica = ready(step_timeout_s=10)
    step = replica.execute_step(STEP)
    replica.loop.advance(9)
    assert not step.done()
    replica.loop.advance(5)
    assert "step_timeout_s = 10 s" in str(error_of(step))


def test_a_long_step_is_not_given_up_while_the_worker_answers() -> None:
    replica = ready(options=ReplicaOptions(heartbeat_timeout_s=8))
    step = replica.execute_step(STEP)
    replica.loop.advance(3600)
    assert not step.done()
    assert replica.rank().pings > 100
    replica.rank().answers_pings = False
    replica.loop.advance(13)
    assert "gave no sign of life" in str(error_of(step))


def test_an_idle_worker_is_not_asked() -> None:
    replica = ready(step_timeout_s=4)
    replica.execute_step(STEP)
    replica.rank().answer(StepOutput())
    replica.loop.advance(10)
    before = replica.rank().pings
    replica.loop.advance(3600)
    assert replica.rank().pings == before


@pytest.mark.parametrize("limit", ["step", "heartbeat"])
def test_time_in_which_the_driver_stood_still_does_not_count(limit: str) -> None:
    config: dict[str, Any] = {"step_timeout_s": 10} if limit == "step" else {}
    replica = ready(options=ReplicaOptions(heartbeat_timeout_s=10), **config)
    step = replica.execute_step(STEP)
    replica.rank().answers_pings = limit == "step"
    replica.loop.advance(5)
    replica.loop.stand_still(3600)
    assert not step.done()
    replica.loop.advance(20)
    assert step.done()


def test_an_interrupt_reaches_rank_0_once_in_a_step() -> None:
    replica = ready(2)
    replica.interrupt()
    assert replica.rank(0).interrupts == 0, "no step is under way"
    for expected in (1, 2):
        replica.execute_step(STEP)
        replica.interrupt()
        replica.interrupt()
        assert [replica.rank(number).interrupts for number in range(2)] == [expected, 0]
        for number in range(2):
            replica.rank(number).answer(StepOutput())


def test_closing_starts_nothing_any_more_and_forgetting_settles_all() -> None:
    replica = ready(2)
    step = replica.execute_step(STEP)
    replica.close()
    assert all(replica.rank(number).was_asked_to_finish for number in range(2))
    replica.rank(0).ends()
    replica.loop.advance(3600)
    assert replica.starts == 1
    replica.forget()
    assert step.done()
    assert all(worker.is_closed for worker in replica.made)


def test_a_worker_that_does_not_end_when_killed_is_kept_until_it_does() -> None:
    replica = ready()
    replica.dies_when_killed = replica.rank().dies_when_killed = False
    old = replica.rank()
    old.declare_dead("hung")
    replica.loop.advance(0)
    assert old in replica.all_workers
    assert not old.is_closed
    old.ends()
    replica.drop_closed()
    assert old not in replica.all_workers
    assert old.is_closed


def test_an_argument_that_cannot_be_sent_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = ready()

    def refuse(*_: Any) -> Any:
        raise RPCError("cannot be pickled")

    monkeypatch.setattr(type(replica.rank()), "pack", staticmethod(refuse))
    with pytest.raises(RPCError):
        replica.execute_step(STEP)
    with pytest.raises(OmniError):
        replica.call("stats")
    assert replica.rank().num_pending == 0
    replica.loop.advance(3600)
    assert replica.starts == 1
