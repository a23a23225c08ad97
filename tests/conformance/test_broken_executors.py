"""The suite finds what is wrong with an executor: each of these fails the tests that are about its fault."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

# Which tests are run for each, and those of them that must fail. The others must pass, so that a test is known to be
# about its own theme alone.
FAULTS: dict[str, tuple[str, list[str]]] = {
    "DropsARequest": ("more_requests_than_places or no_requests", ["test_more_requests_than_places"]),
    "LosesOrder": ("execute_model or order_of_outputs", ["test_execute_model"]),
    "SwapsOutputs": ("order_of_outputs or forms_of_output and pil", ["test_order_of_outputs"]),
    "WrongSeeds": (
        "equal_to_the_bare or equal_to_inline and video or no_requests",
        ["test_equal_to_the_bare_pipeline", "test_equal_to_inline[video]"],
    ),
    "IgnoresAborts": ("abort_in_the_middle or previews", ["test_abort_in_the_middle"]),
    "TellsNoProgress": ("steps_are_counted or several_outputs", ["test_steps_are_counted"]),
    "SwallowsErrors": (
        "not_a_number or raises_fails_alone or no_requests",
        ["test_not_a_number", "test_a_request_that_raises_fails_alone"],
    ),
    "GivesLateReplies": ("late_reply or test_a_timeout or one_reply", ["test_a_late_reply_is_given_to_nobody_else"]),
    "WidensBfloat16": ("tensors_keep_their_type", ["test_tensors_keep_their_type[bfloat16]"]),
    "ReusesMemory": ("huge or overwritten", ["test_a_result_is_not_overwritten_by_later_ones"]),
    "LeaksAThread": ("engines_leave_nothing", ["test_engines_leave_nothing[threads]"]),
    "LeaksADescriptor": ("engines_leave_nothing", ["test_engines_leave_nothing[descriptors]"]),
    "LeaksAProcess": ("engines_leave_nothing", ["test_engines_leave_nothing[children]"]),
    "LeaksSharedMemory": ("engines_leave_nothing", ["test_engines_leave_nothing[shared_memory]"]),
    "LeaksAfterAFailedStart": ("failed_start_leaves_nothing", ["test_a_failed_start_leaves_nothing[descriptors]"]),
    "WaitsBusily": ("idle_cpu or no_requests", ["test_idle_cpu"]),
    "SleepsNot": (
        "requests_wait_while_it_sleeps or level_2 or no_requests",
        ["test_level_2_drops_the_weights"],
    ),
    "AnswersHealthInTurn": ("health_while or starts_serves", ["test_health_while_a_worker_is_held_up"]),
    "SaysThatItIsIll": ("starts_serves or no_requests", ["test_starts_serves_and_is_healthy"]),
    "GivesNoFuture": ("starts_serves or no_requests", ["test_starts_serves_and_is_healthy"]),
    "TellsAnotherSeed": ("starts_serves or no_requests", ["test_starts_serves_and_is_healthy"]),
    "DeclaresTooMuch": (
        "two_workers or one_result_for_each or no_requests",
        [
            "test_two_workers[data_parallel_size]",
            "test_two_workers[cfg_parallel_size]",
            "test_one_result_for_each_rank_of_each_replica",
        ],
    ),
    "ForgetsHooks": ("hook_given_in_code or starts_serves", ["test_a_pipeline_hook_given_in_code"]),
    "NeverReplaces": ("killed_worker_is_replaced or ends_the_worker_processes", ["test_a_killed_worker_is_replaced"]),
    "LeavesWorkersBehind": (
        "ends_the_worker_processes or no_requests",
        ["test_close_ends_the_worker_processes"],
    ),
    "HangsInClose": ("close_twice or factory_that_raises", ["test_close_twice"]),
}


# One of each theme is tried on every run, the others by night.
BY_DAY = (
    "SwapsOutputs",
    "LeaksADescriptor",
)
EACH = [pytest.param(name, marks=() if name in BY_DAY else pytest.mark.nightly) for name in FAULTS]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, list[dict[str, Any]]]:
    """What the suite says of each, in a process of its own: they leave threads and more behind."""
    chosen = FAULTS if request.config.getoption("--nightly") else BY_DAY
    asked = [(name, FAULTS[name][0]) for name in chosen]
    done = subprocess.run(
        [sys.executable, str(HERE / "run_checks.py"), json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return outcomes


@pytest.mark.parametrize("name", EACH)
def test_a_broken_executor_fails_the_test_that_is_about_its_fault(name: str, found: dict[str, Any]) -> None:
    failed = {outcome["name"]: outcome["detail"] for outcome in found[name] if outcome["result"] == "broken"}
    assert sorted(failed) == sorted(FAULTS[name][1]), "\n\n".join(failed.values())
    assert all(failed.values()), "a failure that does not say why"
    said = [outcome["did"] for outcome in found[name] if outcome["result"] == "broken"]
    assert all(re.fullmatch(r"[^\n]{10,300}[.!?…]", one) for one in said), said
    assert not any("lambda" in one or "assert" in one for one in said), said


@pytest.mark.parametrize("name", EACH)
def test_a_broken_executor_passes_the_tests_that_are_not_about_its_fault(name: str, found: dict[str, Any]) -> None:
    assert "kept" in {outcome["result"] for outcome in found[name]}
