from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from omni_core import OmniDiffusionRequest, OmniRequestOutput, StepOutput
from omni_core.scheduler import Scheduler

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
    assert (step.ended_requests, step.new_requests, step.num_steps) == ({"a": "timeout"}, [], 0)
    again = scheduler.schedule(0)
    assert again is not None
    assert (again.ended_requests, names(again.new_requests)) == ({}, ["b"])


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, each request ends once and no replica has too much."""

    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(REPLICAS, MAX_NUM_SEQS)
        self.waiting: dict[str, int] = {}
        self.running: list[dict[str, bool]] = [{} for _ in range(REPLICAS)]
        self.count = 0

    @rule(target=live, priority=st.integers(-1, 1))
    def add(self, priority: int) -> str:
        self.count += 1
        name = f"r{self.count}"
        self.scheduler.add_request(request(name, priority))
        self.waiting[name] = priority
        return name

    @rule(name=consumes(live))
    def end(self, name: str) -> None:
        ended_at_once = self.scheduler.end_request(name, "aborted")
        assert ended_at_once == (name in self.waiting)
        self.waiting.pop(name, None)
        for running in self.running:
            if name in running:
                running[name] = True

    @rule(replica=st.integers(0, REPLICAS - 1), data=st.data())
    def step(self, replica: int, data: st.DataObject) -> None:
        step = self.scheduler.schedule(replica)
        running = self.running[replica]
        if step is None:
            assert not running
            return
        for new in step.new_requests:
            # None waits that is more urgent than one that was taken.
            assert all(priority <= new.priority for name, priority in self.waiting.items())
            del self.waiting[new.request_id]
            running[new.request_id] = False
        told = set(step.ended_requests)
        assert told == {name for name, ending in running.items() if ending}
        done = data.draw(st.sets(st.sampled_from(sorted(running)))) | told
        self.scheduler.update_from_output(replica, finished(*done))
        for name in done:
            del running[name]

    @rule(replica=st.integers(0, REPLICAS - 1))
    def lose(self, replica: int) -> None:
        assert set(names(self.scheduler.take_running(replica))) == set(self.running[replica])
        self.running[replica] = {}

    @invariant()
    def counts_agree(self) -> None:
        assert self.scheduler.num_waiting == len(self.waiting)
        assert self.scheduler.num_running == sum(map(len, self.running))
        assert all(len(running) <= MAX_NUM_SEQS for running in self.running)

    def teardown(self) -> None:
        for _ in range(self.count + 1):
            for replica in range(REPLICAS):
                if self.scheduler.schedule(replica) is not None:
                    self.scheduler.update_from_output(replica, finished(*names(self.scheduler.take_running(replica))))
        assert self.scheduler.num_waiting == self.scheduler.num_running == 0, "a request starves"


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, deadline=None)
