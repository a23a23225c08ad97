"""Anything that may happen to a replica, in any order: no caller waits for ever, and it always comes back."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from omni_core.errors import WorkerDiedError
from omni_core.outputs import SchedulerOutput, StepOutput
from omni_core.replicas.options import ReplicaOptions
from omni_core.request import OmniDiffusionRequest
from replicas.fakes import FakeLoop, FakeReplica, FakeWorker

OPTIONS = ReplicaOptions(max_failures=3, max_backoff_s=4.0, collective_grace_s=2.0, heartbeat_timeout_s=6.0)


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = FakeLoop()
        self.replica = FakeReplica(self.loop, 2, options=OPTIONS, step_timeout_s=8.0, startup_timeout_s=20.0)
        self.replica.start()
        self.replica.load()
        self.step: Future[StepOutput] | None = None
        self.open: list[tuple[Future[Any], FakeWorker]] = []
        self.number = 0

    @property
    def workers(self) -> list[FakeWorker]:
        return [worker for worker in self.replica.workers if isinstance(worker, FakeWorker)]

    @precondition(lambda self: self.replica.is_ready and (self.step is None or self.step.done()))
    @rule()
    def begin_step(self) -> None:
        self.number += 1
        name = f"r{self.number}"
        self.step = self.replica.execute_step(
            SchedulerOutput(new_requests=[OmniDiffusionRequest(request_id=name)], waves=[(name,)])
        )

    @precondition(lambda self: self.replica.is_ready)
    @rule()
    def call(self) -> None:
        workers = self.workers
        self.open += zip(self.replica.call("stats"), workers, strict=True)

    @precondition(lambda self: any(worker.calls for worker in self.workers if worker.is_alive))
    @rule(data=st.data(), raises=st.booleans())
    def answer(self, data: st.DataObject, raises: bool) -> None:
        worker = data.draw(st.sampled_from([one for one in self.workers if one.calls and one.is_alive]))
        worker.raises() if raises else worker.answer(StepOutput())

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.workers)).ends()

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def fall_silent(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.workers)).answers_pings = False

    @precondition(lambda self: any(worker.ready_at is None for worker in self.workers))
    @rule(data=st.data())
    def load_one(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([worker for worker in self.workers if worker.ready_at is None])).loaded(None)

    @rule(can=st.booleans())
    def starts_can_fail(self, can: bool) -> None:
        self.replica.cannot_start = OSError("no files left") if can else None

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 3.0, 10.0, 30.0]))
    def pass_time(self, seconds: float) -> None:
        self.loop.advance(seconds)

    @rule(seconds=st.sampled_from([5.0, 100.0]))
    def stand_still(self, seconds: float) -> None:
        self.loop.stand_still(seconds)

    @invariant()
    def one_set_of_workers_is_alive(self) -> None:
        alive = [worker for worker in self.replica.made if worker.is_alive]
        assert alive == [worker for worker in self.workers if worker.is_alive]

    @invariant()
    def those_that_call_wait_for_somebody(self) -> None:
        for future, worker in self.open:
            assert future.done() or (worker.is_alive and worker.num_pending)

    @invariant()
    def it_is_ready_only_if_all_are(self) -> None:
        if self.replica.is_ready:
            assert len(self.workers) == 2
            assert all(worker.is_alive and worker.ready_at is not None for worker in self.workers)

    def teardown(self) -> None:
        """Whatever was before: with time and workers that load, it serves, and nobody waits for ever."""
        self.replica.cannot_start = None
        for _ in range(60):
            for worker in self.workers:
                worker.answers_pings = True
                if worker.is_alive and worker.ready_at is None:
                    worker.loaded(None)
                while worker.is_alive and worker.calls:
                    worker.answer(StepOutput())
            self.loop.advance(1.0)
        assert self.step is None or self.step.done()
        assert all(future.done() for future, _ in self.open)
        assert self.replica.is_ready
        if self.step is not None and (error := self.step.exception()) is not None:
            assert isinstance(error, WorkerDiedError)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
