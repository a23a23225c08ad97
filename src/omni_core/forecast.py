"""When a request would be done, by what it and those beside it cost. Pure Python: no torch, no threads, no clock.

The future is reckoned as this: each replica has `max_num_seqs` places; requests take places in the order of the
scheduler's backlog, whichever is free first. While any wait, all places are taken, and each request has its share of
its replica. From when the request in question begins, it goes the faster the more of those beside it have ended. Which
replica a request will come to is not known: those at work are taken to be evenly spread. What will arrive, be aborted
or fail is not foreseen.

More that is ahead, and more steps, never make it earlier.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from omni_core.costs import Cost, CostKind
from omni_core.outputs import RequestEstimate


@dataclass(slots=True)
class Work:
    """A request, as far as the forecast is concerned.

    Attributes:
        kind: What decides the cost of its steps.
        priority: Larger ones go first.
        steps: Steps that it takes in all; None if that is not known.
        done: Steps that are done.
        replica: Which replica has it; None while it waits.
        is_started: Whether its replica has begun with it.
    """

    kind: CostKind
    priority: int = 0
    steps: int | None = None
    done: int = 0
    replica: int | None = None
    is_started: bool = False

    @property
    def has_begun(self) -> bool:
        """Whether a replica has it."""
        return self.replica is not None


@dataclass(slots=True)
class _Turn:
    """The turn of a request at one of the places."""

    place: int
    begin: float
    waiting_ahead: int


def forecast(
    target: Work,
    others: Iterable[Work],
    *,
    num_replicas: int,
    num_places: int,
    cost_of: Callable[[CostKind], Cost | None],
    elapsed: Callable[[int], float] = lambda replica: 0.0,
) -> RequestEstimate | None:
    """Return when a request would be done; None if no cost is known yet.

    Args:
        target: Which request.
        others: All others that have not ended, in the order of their arrival. The target arrives after those if it
            waits and is not among them.
        num_replicas: Replicas that serve requests.
        num_places: Requests that each of them works on at a time.
        cost_of: What a request of a kind costs.
        elapsed: Seconds for which a replica has been at the step that it is at.
    """
    costs: dict[CostKind, tuple[Cost, float]] = {}

    def known(kind: CostKind) -> tuple[Cost, float] | None:
        """Return what a kind costs, and how long a round takes on a replica without a free place."""
        if kind not in costs:
            cost = cost_of(kind)
            if cost is None:
                return None
            costs[kind] = (cost, cost.round_seconds(num_places))
        return costs[kind]

    def occupied_seconds(one: Work, *, now: bool = True) -> float:
        """Return for how long a request takes up its place while all others are taken: from now, or the last step."""
        found = known(one.kind)
        if found is None:
            return 0.0
        cost, round_seconds = found
        steps = _steps_left(one, cost)
        seconds = steps * round_seconds + num_places * _seconds_besides_steps(one, cost)
        if now and one.is_started and one.replica is not None:
            seconds -= min(elapsed(one.replica), seconds, round_seconds)
        return seconds

    works = list(others)
    if not any(one is target for one in works):
        works.append(target)
    works.sort(key=_urgency)  # stable: by arrival, where nothing else decides
    releases = [(0.0, place) for place in range(num_replicas * num_places)]
    turn = _Turn(0, 0.0, 0)
    waiting = 0
    firsts: dict[int, Work] = {}
    for one in works:
        release, place = releases[0]
        if one is target:
            turn = _Turn(place, release, waiting)
        firsts.setdefault(place, one)
        waiting += not one.has_begun and release > 0
        heapq.heapreplace(releases, (release + occupied_seconds(one), place))
    found = known(target.kind)
    if found is None:
        return None
    # With all places taken for as long as this, it would be done.
    cost, full_seconds = found[0], occupied_seconds(target, now=False)
    others_end = [
        ((release - turn.begin) / full_seconds if full_seconds > 0 else 0.0, firsts[place])
        for release, place in releases
        if place != turn.place and release > turn.begin
    ]
    seconds = turn.begin + _served_seconds(target, cost, others_end, num_replicas, elapsed)
    if target.has_begun:
        return RequestEstimate(seconds, 0.0, 0)
    return RequestEstimate(seconds, turn.begin, turn.waiting_ahead if turn.begin > 0 else 0)


def _urgency(one: Work) -> tuple[int, bool]:
    return (-one.priority, not one.has_begun)


def _steps_left(one: Work, cost: Cost) -> float:
    return max(0.0, (one.steps or cost.num_steps) - one.done)


def _seconds_besides_steps(one: Work, cost: Cost) -> float:
    return cost.end_seconds + (0.0 if one.is_started else cost.start_seconds)


def _served_seconds(
    target: Work,
    cost: Cost,
    others_end: list[tuple[float, Work]],
    num_replicas: int,
    elapsed: Callable[[int], float],
) -> float:
    """Return how long a request takes from its begin.

    Args:
        target: Which.
        cost: What it costs.
        others_end: For each other place that is taken when it begins, after what part of its work that ends, and who
            has it first.
        num_replicas: Over how many replicas these are spread.
        elapsed: Seconds for which a replica has been at its step.
    """
    steps, besides = _steps_left(target, cost), _seconds_besides_steps(target, cost)

    def at_rate_of(together: int) -> float:
        """Return how long it takes if so many are at work all the time. What is no step is not stacked."""
        return steps * cost.round_seconds(together) + together * besides

    # Where both have begun, it is known whether they are on one replica.
    known = [first.replica == target.replica for _, first in others_end if target.has_begun and first.has_begun]
    beside = sum(known)
    anywhere = len(others_end) - len(known)
    now = together = 1 + beside + anywhere // num_replicas
    done = seconds = 0.0
    for until, first in sorted(others_end, key=lambda entry: entry[0]):
        if until >= 1.0:
            break
        if until > done:
            seconds += (until - done) * at_rate_of(together)
            done = until
        if not (target.has_begun and first.has_begun):
            anywhere -= 1
        elif first.replica == target.replica:
            beside -= 1
        together = 1 + beside + anywhere // num_replicas
    seconds += (1.0 - done) * at_rate_of(together)
    if target.is_started and target.replica is not None:
        seconds -= min(elapsed(target.replica), seconds, cost.round_seconds(now))
    return seconds
