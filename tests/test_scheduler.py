from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from omni_core import OmniDiffusionRequest, OmniRequestOutput, SchedulerOutput, StepOutput
from omni_core.outputs import ForwardReport
from omni_core.scheduler import Scheduler
from omni_core.scheduler_state import LostRequest

REPLICAS = 3
MAX_NUM_SEQS = 2


def request(name: str, priority: int = 0) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(request_id=name, priority=priority, seed=1)


def finished(*names: str) -> StepOutput:
    return StepOutput(finished=[OmniRequestOutput(name, 1, "finished") for name in names])


def names(requests: list[OmniDiffusionRequest]) -> list[str]:
    return [one.request_id for one in requests]


def test_priority_then_arrival() -> None:
    scheduler = Scheduler(1, 1)
    for name, priority in [("a", 0), ("b", 1), ("c", 1), ("d", -1)]:
        scheduler.add_request(request(name, priority))
    order = []
    while (step := scheduler.schedule(0)) is not None:
        order += names(step.new_requests)
        scheduler.update_from_output(0, finished(order[-1]))
    assert order == ["b", "c", "a", "d"]


def test_replicas_share_what_waits() -> None:
    scheduler = Scheduler(2, 8)
    for name in "abcd":
        scheduler.add_request(request(name))
    steps = [scheduler.schedule(0), scheduler.schedule(1)]
    assert [names(step.new_requests) for step in steps if step] == [["a", "b"], ["c", "d"]]


def test_a_replica_without_work_is_left_alone() -> None:
    scheduler = Scheduler(1, 1)
    assert scheduler.schedule(0) is None
    scheduler.add_request(request("a"))
    assert scheduler.end_request("a", "aborted") is True
    assert scheduler.schedule(0) is None
    assert scheduler.end_request("unknown", "aborted") is False


def test_an_end_is_told_to_the_replica_once_and_asleep_too() -> None:
    scheduler = Scheduler(1, 2)
    scheduler.add_request(request("a"))
    scheduler.schedule(0)
    assert scheduler.schedule(0, asleep=True) is None
    assert scheduler.end_request("a", "timeout") is False
    assert scheduler.end_request("a", "aborted") is False
    scheduler.add_request(request("b"))
    step = scheduler.schedule(0, asleep=True)
    assert step is not None
    assert (step.ended_requests, step.new_requests, step.waves) == ({"a": "timeout"}, [], [])
    again = scheduler.schedule(0)
    assert again is not None
    assert (again.ended_requests, names(again.new_requests)) == ({}, ["b"])


@dataclass
class Job:
    """What a replica knows of a request in this test."""

    priority: int
    kind: int
    steps: int
    seconds: float
    ending: bool = False
    is_started: bool = False
    is_suspect: bool = False
    was_cleared: bool = False
    incident: int = -1
    calls: int = 0
    alone_calls: float = 0
    deaths_in_company: int = 0


class Replica:
    """Does what the scheduler says, as a worker would, on a clock of its own."""

    def __init__(self, jobs: dict[str, Job]) -> None:
        self.jobs = jobs
        self.running: set[str] = set()

    def run(self, step: SchedulerOutput) -> StepOutput:
        output = StepOutput()
        self.running |= set(names(step.new_requests))
        for name in step.ended_requests:
            self.running.remove(name)
            output.finished.append(OmniRequestOutput(name, 1, "aborted"))
        for wave in step.waves:
            assert len(set(wave)) == len(wave)
            groups: dict[int, list[str]] = {}
            for name in wave:
                assert name not in step.ended_requests
                if name in self.running:
                    if not self.jobs[name].is_started:
                        self.jobs[name].is_started = True
                        output.start_seconds.append(0.01)
                    groups.setdefault(self.jobs[name].kind, []).append(name)
            for members in groups.values():
                seconds = max(self.jobs[name].seconds for name in members)
                output.forwards.append(ForwardReport(tuple(members), len(members), seconds))
                for name in members:
                    self.jobs[name].steps -= 1
                    self.jobs[name].calls += 1
                    if self.jobs[name].steps == 0:
                        self.running.remove(name)
                        output.finished.append(OmniRequestOutput(name, 1, "finished"))
        output.kinds = {name: self.jobs[name].kind for name in self.running if self.jobs[name].is_started}
        return output


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, each request ends once, no replica has too much, and none starves."""

    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(REPLICAS, MAX_NUM_SEQS)
        self.jobs: dict[str, Job] = {}
        self.waiting: set[str] = set()
        self.replicas = [Replica(self.jobs) for _ in range(REPLICAS)]
        self.ended: list[str] = []
        self.waves = [0] * REPLICAS
        self.incidents = 0

    @rule(
        target=live,
        priority=st.integers(-1, 1),
        kind=st.integers(0, 2),
        steps=st.integers(1, 5),
        seconds=st.sampled_from([0.001, 0.01, 1.0]),
    )
    def add(self, priority: int, kind: int, steps: int, seconds: float) -> str:
        name = f"r{len(self.jobs)}"
        self.jobs[name] = Job(priority, kind, steps, seconds)
        self.scheduler.add_request(request(name, priority))
        self.waiting.add(name)
        return name

    @rule(name=consumes(live))
    def end(self, name: str) -> None:
        ended_at_once = self.scheduler.end_request(name, "aborted")
        assert ended_at_once == (name in self.waiting)
        if ended_at_once:
            self.waiting.remove(name)
            self.ended.append(name)
        self.jobs[name].ending = True

    @rule(replica=st.integers(0, REPLICAS - 1), most_waves=st.sampled_from([1, 3, 32]))
    def step(self, replica: int, most_waves: int) -> None:
        self.step_once(replica, most_waves)

    def step_once(self, index: int, most_waves: int = 1) -> bool:
        replica = self.replicas[index]
        step = self.scheduler.schedule(index, most_waves=most_waves)
        if step is None:
            assert not replica.running
            return False
        for new in step.new_requests:
            # None waits that is more urgent than one that was taken; suspects are a queue of their own.
            assert all(
                self.jobs[name].priority <= new.priority
                for name in self.waiting - set(names(step.new_requests))
                if self.jobs[name].is_suspect == self.jobs[new.request_id].is_suspect
            )
        self.waiting -= set(names(step.new_requests))
        at_work = replica.running | set(names(step.new_requests))
        suspects = [name for name in at_work if self.jobs[name].is_suspect]
        assert len(suspects) <= 1, "two suspects at once"
        if suspects:
            assert all(self.jobs[name].was_cleared for name in at_work if name not in suspects), "it has company"
            assert len(at_work) == 1 or self.jobs[suspects[0]].alone_calls < math.inf, "it must have none at all"
        assert set(step.ended_requests) == {name for name in replica.running if self.jobs[name].ending}
        assert 1 <= len(step.waves) <= most_waves or not (
            replica.running - set(step.ended_requests) or step.new_requests
        )
        advanced = {name for wave in step.waves for name in wave}
        assert len(advanced) <= MAX_NUM_SEQS
        left_out = replica.running - advanced - set(step.ended_requests)
        self.waves[index] = len(step.waves)
        output = replica.run(step)
        self.scheduler.update_from_output(index, output)
        for name in at_work:
            job = self.jobs[name]
            if job.is_suspect and job.calls >= job.alone_calls:
                job.is_suspect, job.was_cleared = False, True
        for one in output.finished:
            assert one.request_id not in self.ended
            self.ended.append(one.request_id)
        # Those that have no place are never more urgent than one that has.
        if len(left_out) > MAX_NUM_SEQS:
            assert min(self.jobs[name].priority for name in left_out) <= max(
                self.jobs[name].priority for name in advanced
            )
        return True

    @rule(replica=st.integers(0, REPLICAS - 1))
    def lose(self, replica: int) -> None:
        self.note_blame(replica, lost := self.scheduler.take_running(replica))
        taken = [one.request.request_id for one in lost]
        assert set(taken) == self.replicas[replica].running
        self.ended.extend(taken)
        self.replicas[replica].running = set()

    def note_blame(self, replica: int, all_lost: list[LostRequest]) -> dict[str, str]:
        at_work = [name for name in self.replicas[replica].running if self.jobs[name].is_started]
        suspects = [name for name in at_work if self.jobs[name].is_suspect]
        blamed = {lost.request.request_id: str(lost.blame) for lost in all_lost if lost.blame != "none"}
        if suspects:
            assert list(blamed) == suspects, "those that were cleared are not to blame"
        assert set(blamed) <= set(at_work)
        # Those that are parked were not at work, whatever this test knows of them.
        assert set(blamed.values()) <= ({"alone", "newest"} if len(blamed) == 1 else {"in company"})
        if suspects:
            for job in self.jobs.values():
                if job.incident == self.jobs[suspects[0]].incident and job.alone_calls < math.inf:
                    job.is_suspect = False
        return blamed

    @rule(replica=st.integers(0, REPLICAS - 1))
    def crash(self, replica: int) -> None:
        self.incidents += 1
        all_lost = self.scheduler.take_running(replica)
        blamed = self.note_blame(replica, all_lost)
        for lost in all_lost:
            name = lost.request.request_id
            job = self.jobs[name]
            assert (lost.end_reason is not None) == job.ending
            if lost.end_reason is not None:
                self.ended.append(name)
                continue
            job.is_suspect, job.was_cleared, job.incident = name in blamed, False, self.incidents
            if name in blamed:
                job.deaths_in_company += blamed[name] == "in company"
                is_short = blamed[name] == "in company" and job.deaths_in_company < 2
                job.alone_calls = job.calls + self.waves[replica] + 1 if is_short else math.inf
            job.calls, job.is_started = 0, False
            self.scheduler.requeue(lost)
            self.waiting.add(name)
        self.replicas[replica].running = set()

    @invariant()
    def counts_agree(self) -> None:
        assert self.scheduler.num_waiting == len(self.waiting)
        assert self.scheduler.num_running == sum(len(replica.running) for replica in self.replicas)
        assert self.scheduler.num_running - self.scheduler.num_parked <= REPLICAS * MAX_NUM_SEQS

    def teardown(self) -> None:
        for _ in range(20_000):
            stepped = [self.step_once(index) for index in range(REPLICAS)]
            if not any(stepped):
                break
        assert sorted(self.ended) == sorted(self.jobs), "a request starves, or ended twice"


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=100, deadline=None)


def run_until_empty(scheduler: Scheduler, jobs: dict[str, Job]) -> list[tuple[str, ...]]:
    """Run one replica to the end; return who advanced, forward by forward."""
    replica = Replica(jobs)
    order: list[tuple[str, ...]] = []
    while (step := scheduler.schedule(0)) is not None:
        output = replica.run(step)
        order += [forward.request_ids for forward in output.forwards]
        scheduler.update_from_output(0, output)
    return order


def test_a_large_request_does_not_stall_small_ones() -> None:
    scheduler = Scheduler(1, 8)
    jobs = {"large": Job(0, 0, 20, 1.0), "small": Job(0, 1, 20, 0.1)}
    for name in jobs:
        scheduler.add_request(request(name))
    order = run_until_empty(scheduler, jobs)
    last_small = max(index for index, forward in enumerate(order) if "small" in forward)
    large_before = sum("large" in forward for forward in order[:last_small])
    # Each gets half of the time: 20 small steps take 2 s, so the large one did about 2 of its steps meanwhile.
    assert large_before <= 4


def test_requests_that_fit_together_advance_together() -> None:
    scheduler = Scheduler(1, 8)
    jobs = {name: Job(0, 0, 3, 0.1) for name in "abc"}
    for name in jobs:
        scheduler.add_request(request(name))
    assert run_until_empty(scheduler, jobs) == [("a", "b", "c")] * 3


def test_a_late_arrival_is_served_in_the_next_wave() -> None:
    scheduler = Scheduler(1, 9)
    jobs = {f"long{number}": Job(0, number % 2, 50, 0.1) for number in range(8)}
    for name in jobs:
        scheduler.add_request(request(name))
    replica = Replica(jobs)
    for _ in range(20):
        step = scheduler.schedule(0)
        assert step is not None
        scheduler.update_from_output(0, replica.run(step))
    jobs["late"] = Job(0, 2, 3, 0.01)
    scheduler.add_request(request("late"))
    step = scheduler.schedule(0)
    assert step is not None
    assert "late" in step.waves[0]


def test_a_more_urgent_arrival_parks_a_less_urgent_one_and_it_goes_on_later() -> None:
    scheduler = Scheduler(1, 1)
    jobs = {"low": Job(0, 0, 5, 0.1), "high": Job(1, 0, 2, 0.1)}
    replica = Replica(jobs)
    order: list[str] = []

    def advance() -> None:
        step = scheduler.schedule(0)
        assert step is not None
        output = replica.run(step)
        order.extend(name for forward in output.forwards for name in forward.request_ids)
        scheduler.update_from_output(0, output)

    scheduler.add_request(request("low"))
    advance()
    advance()
    scheduler.add_request(request("high", 1))
    advance()
    assert (scheduler.num_parked, scheduler.num_running) == (1, 2)
    advance()
    for _ in range(3):
        advance()
    assert order == ["low", "low", "high", "high", "low", "low", "low"]
    assert scheduler.schedule(0) is None


def test_a_call_takes_several_waves_if_it_may_and_they_are_short() -> None:
    scheduler = Scheduler(1, 2)
    jobs = {"a": Job(0, 0, 1000, 0.005)}
    scheduler.add_request(request("a"))
    replica = Replica(jobs)
    lengths = []
    for _ in range(4):
        step = scheduler.schedule(0, most_waves=32)
        assert step is not None
        lengths.append(len(step.waves))
        scheduler.update_from_output(0, replica.run(step))
    assert lengths == [1, 30, 30, 30]


def test_an_idle_replica_waits_for_company() -> None:
    scheduler = Scheduler(1, 4, max_batch_wait_s=0.5)
    assert scheduler.batch_deadline() is None
    scheduler.add_request(request("a"), now=10.0)
    assert scheduler.schedule(0, now=10.2) is None
    assert scheduler.batch_deadline() == 10.5
    scheduler.add_request(request("b"), now=10.3)
    step = scheduler.schedule(0, now=10.5)
    assert step is not None
    assert names(step.new_requests) == ["a", "b"]
    full = Scheduler(1, 2, max_batch_wait_s=100)
    for name in "ab":
        full.add_request(request(name), now=0.0)
    assert full.schedule(0, now=0.0) is not None


def test_the_place_of_an_aborted_request_is_taken_in_the_same_call() -> None:
    scheduler = Scheduler(1, 2)
    for name, priority in (("a", 0), ("b", 0), ("low", -1), ("next", 0)):
        scheduler.add_request(request(name, priority))
    assert (step := scheduler.schedule(0)) is not None
    assert names(step.new_requests) == ["a", "b"]
    scheduler.end_request("a", "aborted")
    assert (step := scheduler.schedule(0)) is not None
    assert step.ended_requests == {"a": "aborted"}
    assert names(step.new_requests) == ["next"]
    assert "next" in step.waves[0]


def test_a_parked_request_that_is_aborted_gets_no_place_back() -> None:
    scheduler = Scheduler(1, 1)
    scheduler.add_request(request("low", -1))
    scheduler.schedule(0)
    scheduler.add_request(request("high", 1))
    scheduler.schedule(0)
    assert scheduler.num_parked == 1
    scheduler.end_request("low", "aborted")
    scheduler.end_request("high", "aborted")
    assert (step := scheduler.schedule(0)) is not None
    assert set(step.ended_requests) == {"low", "high"}
    assert step.waves == []


def test_what_a_replica_lost_is_run_again_alone_and_what_it_had_not_begun_is_not() -> None:
    scheduler = Scheduler(1, 3)
    for name in ("a", "b", "c", "d"):
        scheduler.add_request(request(name))
    scheduler.schedule(0)
    lost = scheduler.take_running(0)
    assert [(one.request.request_id, one.was_started) for one in lost] == [("a", True), ("b", True), ("c", True)]
    for one in lost[:2]:
        scheduler.requeue(one)
    scheduler.requeue(dataclasses.replace(lost[2], was_started=False, blame="none"))
    order = []
    while (step := scheduler.schedule(0)) is not None:
        order.append(names(step.new_requests))
        scheduler.update_from_output(0, finished(*order[-1]))
    assert order == [["a"], ["b"], ["c", "d"]], "the suspects alone, then the others in the order of their arrival"


def crash(scheduler: Scheduler, *, of: str | None = None) -> dict[str, str]:
    """Let replica 0 fail, and all that it had run again; return who may be to blame, and how."""
    blame = {}
    for lost in scheduler.take_running(0):
        blame[lost.request.request_id] = lost.blame
        if lost.request.request_id != of:
            scheduler.requeue(lost)
    return blame


def advance(scheduler: Scheduler, replica: Replica) -> list[str]:
    """Let replica 0 do one step, and return who advanced in it."""
    step = scheduler.schedule(0)
    assert step is not None
    scheduler.update_from_output(0, replica.run(step))
    return [name for wave in step.waves for name in wave]


def test_suspects_have_company_again_when_they_are_further_than_where_the_worker_died() -> None:
    scheduler, jobs = Scheduler(1, 8), {name: Job(0, 0, 10, 1.0) for name in "abc"}
    for name in jobs:
        scheduler.add_request(request(name))
    replica = Replica(jobs)
    for _ in range(3):
        advance(scheduler, replica)
    # In the fourth call it fails.
    scheduler.schedule(0)
    assert crash(scheduler) == dict.fromkeys("abc", "in company")
    replica = Replica({name: Job(0, 0, 10, 1.0) for name in "abc"})
    advanced = [advance(scheduler, replica) for _ in range(15)]
    assert advanced[:5] == [["a"]] * 5, "alone up to where it may have been, and one call more"
    assert advanced[5:10] == [["a", "b"]] * 5
    assert advanced[10:] == [["b", "c"]] * 5


def test_the_others_are_free_when_the_one_is_found() -> None:
    scheduler, jobs = Scheduler(1, 8), {name: Job(0, 0, 10, 1.0) for name in "abcd"}
    for name in jobs:
        scheduler.add_request(request(name))
    replica = Replica(jobs)
    advance(scheduler, replica)
    crash(scheduler)
    replica = Replica(jobs)
    while advance(scheduler, replica) != ["a", "b"]:
        pass
    assert crash(scheduler, of="b") == {"a": "none", "b": "newest"}, "a was cleared, so it is b"
    assert advance(scheduler, Replica(jobs)) == ["a", "c", "d"]


def test_who_lost_its_worker_in_company_twice_has_none_any_more() -> None:
    scheduler, jobs = Scheduler(1, 8), {name: Job(0, 0, 10, 1.0) for name in "ab"}
    for name in jobs:
        scheduler.add_request(request(name))
    advance(scheduler, Replica(jobs))
    crash(scheduler)
    replica = Replica(jobs)
    while advance(scheduler, replica) != ["a", "b"]:
        pass
    for _ in range(3):
        advance(scheduler, replica)
    assert crash(scheduler) == dict.fromkeys("ab", "in company")
    replica = Replica({name: Job(0, 0, 10, 1.0) for name in "ab"})
    assert [advance(scheduler, replica) for _ in range(20)] == [["a"]] * 10 + [["b"]] * 10


def test_a_suspect_is_not_kept_waiting_by_replicas_that_are_never_empty() -> None:
    scheduler = Scheduler(2, 2)
    for number in range(4):
        scheduler.add_request(request(f"first{number}"))
    assert scheduler.schedule(0) is not None
    assert scheduler.schedule(1) is not None
    for one in scheduler.take_running(0):
        scheduler.requeue(one)
    # The replica that failed stays away; the other one is always offered more.
    running = ["first2", "first3"]
    taken: list[str] = []
    for number in range(20):
        scheduler.add_request(request(f"more{number}"))
        ends = running.pop(0) if running else None
        scheduler.update_from_output(1, finished(*([ends] if ends else [])))
        step = scheduler.schedule(1)
        assert step is not None
        running += names(step.new_requests)
        taken += names(step.new_requests)
    assert taken.index("first0") <= 1
    assert taken.index("first1") <= 2


def test_a_request_that_was_to_end_when_its_replica_was_lost_is_not_run_again() -> None:
    scheduler = Scheduler(1, 2)
    for name in "ab":
        scheduler.add_request(request(name))
    scheduler.schedule(0)
    scheduler.end_request("a", "aborted")
    scheduler.schedule(0)  # the replica is told, and dies of it
    assert scheduler.num_running == 1
    scheduler.end_request("a", "timeout")
    scheduler.end_request("b", "timeout")
    assert [one.end_reason for one in scheduler.take_running(0)] == ["aborted", "timeout"]
