"""What is learned of the costs of requests, and when they are said to be done."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_core import OmniDiffusionRequest, OmniRequestOutput, PipelineInfo, RequestMetrics, StepOutput, StepProgress
from omni_core.costs import Cost, CostKind, Costs, kind_of
from omni_core.engine.estimates import Estimates
from omni_core.forecast import Work, forecast
from omni_core.outputs import ForwardReport
from omni_core.pipeline_info import StrengthRule
from omni_core.scheduler import Scheduler

KIND = CostKind(512, 512)
INFO = PipelineInfo("Pipeline", "model", (), accepts_any=True)


def learned(seconds: dict[int, float], kind: CostKind = KIND, *, start: float = 0.0, end: float = 0.0) -> Costs:
    """Return what is known where a round of so many requests took so long."""
    costs = Costs()
    for together, round_seconds in seconds.items():
        costs.add_round(kind, together, round_seconds)
    costs.add_start(kind, start)
    costs.add_end(kind, end)
    return costs


def cost_of(costs: Costs, kind: CostKind = KIND) -> Cost:
    cost = costs.cost(kind)
    assert cost is not None
    return cost


# Kinds


def test_a_kind_is_what_the_request_says_and_else_the_defaults() -> None:
    info = PipelineInfo(
        "Pipeline",
        "model",
        (),
        accepts_any=True,
        defaults={"height": 256},
        own_defaults={"width": 128, "height": 64, "num_inference_steps": 30, "guidance_scale": 7.5},
    )
    said = OmniDiffusionRequest(width=512, num_outputs_per_prompt=2, extra_args={"num_frames": 8})
    assert kind_of(said, info) == (CostKind(256, 512, 2, 8, True), 30)
    plain = OmniDiffusionRequest(guidance_scale=1.0, num_inference_steps=4)
    assert kind_of(plain, info) == (CostKind(256, 128), 4)
    assert kind_of(plain, None) == (CostKind(), 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "8", [8], None, object(), 10**400])
def test_odd_values_are_no_part_of_a_kind(value: Any) -> None:
    request = OmniDiffusionRequest(extra_args={"num_frames": value, "true_cfg_scale": value})
    assert kind_of(request, INFO) == (CostKind(), None)


def test_steps_are_those_that_are_taken_of_a_picture() -> None:
    info = PipelineInfo("Pipeline", "model", (), strength_rule=StrengthRule(rounds_down=True, unless=("sigmas",)))
    asked = {"num_inference_steps": 20, "extra_args": {"strength": 0.5}}
    assert kind_of(OmniDiffusionRequest(**asked), info)[1] == 10
    asked["extra_args"] = {"strength": 0.5, "sigmas": [1.0]}
    assert kind_of(OmniDiffusionRequest(**asked), info)[1] == 20
    assert kind_of(OmniDiffusionRequest(num_inference_steps=20), info)[1] == 20


# Costs


def test_nothing_is_known_at_first() -> None:
    assert Costs().cost(KIND) is None
    assert Estimates(INFO, 1, 1).estimate(OmniDiffusionRequest()) is None


def test_the_mean_of_what_was_measured() -> None:
    costs = Costs()
    for seconds in (1.0, 3.0):
        costs.add_round(KIND, 1, seconds, 1)
    assert cost_of(costs).round_seconds(1) == 2.0
    for _ in range(2000):
        costs.add_round(KIND, 1, 5.0, 1)
    assert cost_of(costs).round_seconds(1) == pytest.approx(5.0, rel=0.01)


def test_the_first_request_that_warms_up_counts_for_little() -> None:
    costs = Costs()
    costs.add_round(KIND, 1, 100.0, 20)
    costs.add_end(KIND, 0.0)
    costs.add_round(KIND, 1, 2.0, 20)
    assert cost_of(costs).round_seconds(1) < 0.6


def test_between_beyond_and_below_the_numbers_that_were_measured() -> None:
    cost = cost_of(learned({4: 8.0, 8: 10.0}))
    assert cost.round_seconds(6) == 9.0
    assert cost.round_seconds(16) == 20.0
    assert cost.round_seconds(1) == 4.0


def test_what_was_measured_last_is_right_where_others_disagree() -> None:
    cost = cost_of(learned({1: 60.0, 8: 10.0}))
    assert [cost.round_seconds(together) for together in (1, 4, 8)] == [10.0, 10.0, 10.0]


def test_kinds_that_were_not_measured_are_scaled() -> None:
    costs = learned({1: 1.0}, CostKind(512, 512))
    assert cost_of(costs, CostKind(1024, 512)).round_seconds(1) == 2.0
    assert cost_of(costs, CostKind(512, 512, 3, 4)).round_seconds(1) == 12.0
    assert cost_of(costs, CostKind(512, 512, is_guided=True)).round_seconds(1) == 2.0
    costs.add_round(CostKind(2048, 2048), 1, 64.0, 1)  # a device that does large ones badly
    between = cost_of(costs, CostKind(1024, 1024)).round_seconds(1)
    assert 4.0 < between < 16.0


def test_memory_is_bounded_and_the_latest_kinds_are_kept() -> None:
    costs = Costs()
    for height in range(1, 1000):
        costs.add_round(CostKind(height, 1), 1, float(height), 1)
        costs.add_round(KIND, 1, 7.0, 1)
    assert len(costs) == 256
    assert cost_of(costs).round_seconds(1) == 7.0
    assert cost_of(costs, CostKind(999, 1)).round_seconds(1) == 999.0
    for together in range(1, 1000):
        costs.add_round(KIND, together, 1.0, 1)
    assert cost_of(costs).round_seconds(64) > 0


seconds_of_any_kind = st.one_of(st.floats(), st.sampled_from([0.0, math.nan, math.inf, 1e6]), st.floats(0, 100))


@given(
    st.lists(st.tuples(st.integers(-1, 70), seconds_of_any_kind, st.integers(-1, 40), st.integers(1, 3)), max_size=30),
    st.integers(1, 8),
)
def test_whatever_is_told_an_estimate_is_a_number_of_seconds(
    told: list[tuple[int, float, int, int]], places: int
) -> None:
    costs = Costs()
    for together, seconds, steps, outputs in told:
        kind = CostKind(64, 64, outputs)
        costs.add_round(kind, together, seconds, steps)
        costs.add_start(kind, seconds)
        costs.add_end(kind, seconds)
        costs.add_total(kind, steps)
    ahead = [Work(CostKind(64, 64, number), steps=steps) for number, steps in ((1, 1), (2, 2), (3, 4), (4, None))]
    found = forecast(Work(KIND, steps=10), ahead, num_replicas=2, num_places=places, cost_of=costs.cost)
    assert found is None or (0 <= found.queue_s <= found.seconds < math.inf and 0 <= found.position <= 4)
    if found is not None:
        cost = cost_of(costs)
        rounds = [cost.round_seconds(number / 2) for number in range(2, 20)]
        assert all(more >= less * (1 - 1e-9) for less, more in itertools.pairwise(rounds))


def test_numbers_without_measure_do_no_harm() -> None:
    huge = 10**400
    estimates = Estimates(INFO, 1, 2)
    requests = [ask("a", 10), ask("b", 10)]
    for number in (huge, -huge):
        estimates.add(requests)
        estimates.step_begins(0, requests, 0.0)
        progress = [StepProgress("a", number, number), StepProgress("b", 1, 10)]
        estimates.step_done(0, 1.0, StepOutput(["a", "b"], progress, start_seconds=[number, 0.1]))
        assert estimates.estimate(requests[0]) is not None
        metrics = RequestMetrics(num_steps=number, decode_s=number)
        estimates.step_done(0, 1.0, StepOutput(finished=[OmniRequestOutput("a", 1, "finished", metrics=metrics)]))
        estimates.remove("a")
        found = estimates.estimate(requests[1])
        assert found is not None
        assert 0 <= found.seconds < 100
        estimates.lost(0)
        assert estimates.estimate(requests[1]) is not None
        estimates.remove("b")


# The queue

works = st.builds(
    Work,
    kind=st.builds(
        CostKind,
        height=st.sampled_from([64, 512]),
        width=st.just(512),
        outputs=st.integers(1, 2),
        frames=st.none(),
        seconds=st.sampled_from([None, 1, 47]),
    ),
    priority=st.integers(-1, 1),
    steps=st.one_of(st.none(), st.integers(1, 50)),
    done=st.integers(0, 20),
)


def test_lengths_are_part_of_the_kind() -> None:
    kinds = [
        kind_of(OmniDiffusionRequest(prompt="x", seed=1, extra_args=extra), None)[0]
        for extra in ({}, {"num_frames": 8}, {"video_length": 16}, {"audio_end_in_s": 1.0}, {"audio_duration": 46.5})
    ]
    assert [(kind.frames, kind.seconds) for kind in kinds] == [
        (None, None),
        (8, None),
        (16, None),
        (None, 1),
        (None, 47),
    ]


def test_more_together_than_are_told_apart() -> None:
    costs = Costs()
    costs.add_round(KIND, 256, 1.0)
    assert cost_of(costs, KIND).round_seconds(256) == 1.0


def test_a_request_that_is_begun_again_has_all_its_steps_to_do() -> None:
    """As after a sleep of level 2, when its replica keeps it."""
    estimates = Estimates(None, 1, 1)
    request = OmniDiffusionRequest(prompt="x", seed=1, request_id="a", num_inference_steps=20)
    estimates.add([request])
    estimates.note_ready(0, is_ready=True)
    estimates.step_begins(0, [request], 0.0)
    for step in range(11):
        started = ["a"] if step == 0 else []
        progress = [StepProgress("a", step, 20)] if step else []
        estimates.step_done(0, 1.0, StepOutput(started=started, progress=progress))
    estimates.step_begins(0, [], time.monotonic())
    before = estimates.estimate(request)
    estimates.step_done(0, 1.0, StepOutput(started=["a"]))
    estimates.step_begins(0, [], time.monotonic())
    after = estimates.estimate(request)
    assert before is not None
    assert after is not None
    assert 8 <= before.seconds <= 12
    assert 18 <= after.seconds <= 23


def test_what_happens_while_one_asks_changes_nothing_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's thread goes on: replicas are lost, and a signal handler may submit."""
    estimates = Estimates(None, 4, 1)
    requests = [OmniDiffusionRequest(prompt="x", seed=1, request_id=str(n), num_inference_steps=20) for n in range(12)]
    estimates.add(requests)
    for replica in range(4):
        estimates.note_ready(replica, is_ready=True)
        estimates.step_begins(replica, [requests[replica]], math.inf)  # so that no time passes
        estimates.step_done(replica, 1.0, StepOutput(started=[str(replica)]))
        estimates.step_done(replica, 1.0, StepOutput(progress=[StepProgress(str(replica), 1 + replica, 20)]))
    cost_of = estimates._cost_of

    def meanwhile(kind: CostKind) -> Cost | None:
        for replica in range(4):
            estimates.lost(replica)
        estimates.add([OmniDiffusionRequest(prompt="x", seed=1)])
        return cost_of(kind)

    for request in requests:
        before = estimates.estimate(request)
        with monkeypatch.context() as patched:
            patched.setattr(estimates, "_cost_of", meanwhile)
            assert estimates.estimate(request) == before
        for replica in range(4):
            estimates.step_begins(replica, [requests[replica]], math.inf)
            estimates.step_done(replica, 1.0, StepOutput(started=[str(replica)]))
            estimates.step_done(replica, 1.0, StepOutput(progress=[StepProgress(str(replica), 1 + replica, 20)]))


measured = st.dictionaries(st.integers(1, 8), st.floats(0, 10), min_size=1).map(learned)


@given(
    works,
    st.lists(works, max_size=20),
    works,
    st.lists(st.integers(0, 1), max_size=4),
    measured,
    st.integers(1, 2),
    st.integers(1, 4),
)
@settings(max_examples=300, deadline=None)
def test_more_ahead_and_more_steps_never_make_it_earlier(
    target: Work, ahead: list[Work], more: Work, begun: list[int], costs: Costs, replicas: int, places: int
) -> None:
    for one, replica in zip(ahead, begun, strict=False):
        one.replica, one.is_started = replica % replicas, True

    def estimate(others: list[Work]) -> tuple[float, float]:
        found = forecast(target, others, num_replicas=replicas, num_places=places, cost_of=costs.cost)
        assert found is not None
        return found.seconds, found.queue_s

    def no_less(after: tuple[float, float], before: tuple[float, float]) -> bool:
        return all(new >= old - 1e-6 - 1e-9 * old for new, old in zip(after, before, strict=True))

    fewer = estimate(ahead)
    assert no_less(estimate([*ahead, more]), fewer)
    target.steps = (target.steps or 1) + 20
    assert no_less(estimate(ahead), fewer)


def test_places_position_and_priority() -> None:
    costs = learned({1: 1.0})

    def estimate(target: Work, others: list[Work], places: int = 2) -> Any:
        return forecast(target, others, num_replicas=1, num_places=places, cost_of=costs.cost)

    running = [Work(KIND, steps=10, replica=0, is_started=True) for _ in range(2)]
    waiting = [Work(KIND, steps=10) for _ in range(3)]
    alone = estimate(Work(KIND, steps=10), [])
    assert (alone.seconds, alone.queue_s, alone.position) == (10.0, 0.0, 0)
    joins = estimate(Work(KIND, steps=10), running[:1])
    assert (joins.seconds, joins.queue_s, joins.position) == (20.0, 0.0, 0)
    last = estimate(Work(KIND, steps=10), [*running, *waiting])
    assert (last.seconds, last.queue_s, last.position) == (60.0, 40.0, 3)
    second = estimate(waiting[1], [*running, *waiting])
    assert (second.seconds, second.queue_s, second.position) == (40.0, 20.0, 1)
    urgent = estimate(Work(KIND, steps=10, priority=1), [*running, *waiting])
    assert (urgent.queue_s, urgent.position) == (0.0, 0)
    behind = estimate(running[0], [*running, *waiting])
    assert (behind.seconds, behind.queue_s, behind.position) == (20.0, 0.0, 0)
    almost = Work(KIND, steps=10, done=9, replica=0, is_started=True)
    assert estimate(almost, [almost]).seconds == 1.0


def test_the_time_that_a_step_has_taken_so_far_counts_but_no_more_than_a_step() -> None:
    costs = learned({1: 10.0})
    running = Work(KIND, steps=3, replica=0, is_started=True)
    for elapsed, seconds in [(0.0, 30.0), (4.0, 26.0), (1000.0, 20.0)]:
        found = forecast(
            running, [running], num_replicas=1, num_places=1, cost_of=costs.cost, elapsed=lambda _, e=elapsed: e
        )
        assert found is not None
        assert found.seconds == seconds


def test_a_thousand_that_wait_are_reckoned_in_no_time() -> None:
    estimates = Estimates(INFO, 2, 8)
    estimates._costs.add_round(KIND, 1, 1.0, 1)
    estimates.add([OmniDiffusionRequest(num_inference_steps=20, height=64 + index % 7) for index in range(100)])
    asked = OmniDiffusionRequest()
    took = []
    for _ in range(20):
        began = time.perf_counter()
        estimates.estimate(asked)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.01  # about 0.3 ms


# A schedule


class Simulated:
    """Replicas whose steps take a known time, on a clock of their own, under the real scheduler.

    Args:
        round_seconds: How long a forward of so many requests takes.
        stacks: Whether calls are stacked; otherwise each request has forwards of its own.
    """

    def __init__(
        self,
        round_seconds: Callable[[int], float],
        *,
        replicas: int = 1,
        places: int = 4,
        stacks: bool = True,
        start: float = 0.0,
        end: float = 0.0,
    ) -> None:
        self.now = 0.0
        self.estimates = Estimates(INFO, replicas, places)
        for index in range(replicas):
            self.estimates.note_ready(index, is_ready=True)
        self.scheduler = Scheduler(replicas, places)
        self.round_seconds, self.stacks, self.start, self.end = round_seconds, stacks, start, end
        self.steps: list[dict[str, int]] = [{} for _ in range(replicas)]
        self.requests: dict[str, OmniDiffusionRequest] = {}
        self.done_at: dict[str, float] = {}
        # When the step of each replica is done, and what comes of it.
        self.busy: dict[int, tuple[float, float, StepOutput]] = {}

    def submit(self, request: OmniDiffusionRequest) -> None:
        self.requests[request.request_id] = request
        self.estimates.add([request])
        self.scheduler.add_request(request)

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        while not until():
            for index in range(len(self.steps)):
                if index not in self.busy:
                    self.begin(index)
            if not self.busy:
                return
            index = min(self.busy, key=lambda one: self.busy[one][0])
            self.now, seconds, output = self.busy.pop(index)
            self.scheduler.update_from_output(index, output)
            self.estimates.step_done(index, seconds, output)
            for one in output.finished:
                self.estimates.remove(one.request_id)
                self.done_at[one.request_id] = self.now

    def begin(self, index: int) -> None:
        step = self.scheduler.schedule(index)
        if step is None:
            return
        self.estimates.step_begins(index, step.new_requests, time.monotonic())
        output, seconds = StepOutput(), 0.0
        steps = self.steps[index]
        [wave] = step.waves
        for name in wave:
            if name not in steps:
                steps[name] = 0
                output.started.append(name)
                output.start_seconds.append(self.start)
                seconds += self.start
        for group in [wave] if self.stacks else [[name] for name in wave[:1]]:
            took = self.round_seconds(len(group))
            output.forwards.append(ForwardReport(tuple(group), len(group), took))
            seconds += took
            for name in group:
                steps[name] += 1
                total = self.requests[name].num_inference_steps or 1
                output.progress.append(StepProgress(name, steps[name], total))
                if steps[name] == total:
                    metrics = RequestMetrics(num_steps=total, decode_s=self.end)
                    output.finished.append(OmniRequestOutput(name, 1, "finished", metrics=metrics))
                    seconds += self.end
                    del steps[name]
        output.kinds = {name: 0 if self.stacks else number for number, name in enumerate(steps)}
        self.busy[index] = (self.now + seconds, seconds, output)


def ask(name: str, steps: int) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(request_id=name, seed=1, num_inference_steps=steps)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("stacks", [True, False])
@pytest.mark.parametrize(
    ("fixed", "each", "start", "end"), [(1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.5, 0.5, 1.0, 2.0)]
)
@given(steps=st.lists(st.integers(5, 30), min_size=1, max_size=30))
@settings(max_examples=8, deadline=None)
def test_estimates_of_a_schedule_come_to_be_right(
    fixed: float, each: float, start: float, end: float, stacks: bool, replicas: int, steps: list[int]
) -> None:
    simulated = Simulated(lambda number: fixed + each * number, replicas=replicas, stacks=stacks, start=start, end=end)
    for burst in range(3):
        for index in range(20):
            simulated.submit(ask(f"learn-{burst}-{index}", 20))
        simulated.run()
    simulated.submit(ask("alone", 20))
    simulated.run()
    began = simulated.now
    said = {}
    for index, number in enumerate(steps):
        request = ask(f"asked-{index}", number)
        simulated.submit(request)
        said[request.request_id] = simulated.estimates.estimate(request)
    last = f"asked-{len(steps) - 1}"
    simulated.run()
    estimate = said[last]
    assert estimate is not None
    truth = simulated.done_at[last] - began
    # On which of two replicas it is alone, and on which it has company, cannot be told before.
    within = 1.2 if replicas == 1 or len(steps) > 16 else 2.0
    if end:
        within = max(within, 1.35)  # when those beside it decode, before it or after it, is not foreseen
    assert truth / within <= estimate.seconds <= truth * within, (truth, estimate)
