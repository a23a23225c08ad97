"""Counting steps by the bars that a pipeline opens."""

from __future__ import annotations

from typing import Any

from omni_core.worker.pipeline.progress import TaskProgress


class Stages:
    def __call__(self, prior_num_inference_steps: int = 4, num_inference_steps: int = 3) -> None: ...


class Single:
    def __call__(self, num_inference_steps: int = 3) -> None: ...


def watched(pipeline: Any, **arguments: Any) -> TaskProgress:
    progress = TaskProgress()
    progress.watch(pipeline, arguments)
    return progress


def test_a_loop_within_a_loop_counts_the_inner_steps() -> None:
    progress = watched(Single())
    seen = []
    for _ in progress.bar(range(2), desc="pictures", leave=True):
        for _ in progress.bar(range(3), leave=False):
            seen.append(progress.position)
    assert seen == [(step, 6) for step in range(6)]
    assert progress.position == (6, 6)


def test_the_steps_of_all_stages_are_known_from_the_first_on() -> None:
    progress = watched(Stages(), num_inference_steps=2)
    assert progress.position[0] == 0
    seen = []
    for total in (4, 2):
        with progress.bar(total=total) as bar:
            for _ in range(total):
                bar.update()
                seen.append(progress.position)
    assert seen == [(step, 6) for step in range(1, 7)]


def test_a_stage_of_fewer_steps_than_asked_for_corrects_the_total() -> None:
    progress = watched(Stages())
    list(progress.bar(range(4)))
    assert progress.position == (4, 7)
    list(progress.bar(total=None, iterable=range(1)))
    assert progress.position == (5, 5)


def test_a_loop_that_is_left_early_is_not_an_outer_one() -> None:
    progress = watched(Single())
    for turn in progress.bar(range(5)):
        if turn == 2:
            break
    list(progress.bar(range(3)))
    assert progress.position == (5, 8)
