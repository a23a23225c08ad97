"""SPMD mode: `torchrun --nproc-per-node 2 spmd_script.py CASE FOLDER`, real processes, and what each of them saw."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.testing.warm_python import WarmPython

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SCRIPT = HERE / "spmd_script.py"
LIMIT_S = 100.0
TorchRun = Callable[..., list[dict[str, Any]]]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.fixture(scope="module")
def torchrun(warm_python: WarmPython, request: pytest.FixtureRequest) -> TorchRun:
    """Run a case under torchrun, in processes that are forked from a warm one; return what each rank saw.

    With --nightly, and with `cold`, torchrun and the ranks are interpreters of their own.
    """

    def run(case: str, folder: Path, ranks: int = 2, cold: bool = False, **more: str) -> list[dict[str, Any]]:
        if cold or request.config.getoption("--nightly"):
            command = [sys.executable, *TORCHRUN, str(ranks)]
        else:
            python = warm_python.command()
            command = [*python, *TORCHRUN, str(ranks), "--no-python", *python]
        process = start([*command, str(SCRIPT), case, str(folder)], **more)
        said = finish(process)
        assert process.returncode == 0, said
        return results(folder, ranks, said)

    return run


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMNI_", "TORCHELASTIC_"))}
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths), **more}


def finish(process: subprocess.Popen[str], limit_s: float = LIMIT_S) -> str:
    """Wait for a process; end it and all that it started if it does not end."""
    children = psutil.Process(process.pid)
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        for one in [*children.children(recursive=True), children]:
            one.kill()
        said, _ = process.communicate()
        pytest.fail(f"did not end within {limit_s} s:\n{said}")
    return said


def start(command: list[str], **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def results(folder: Path, ranks: int, said: str) -> list[dict[str, Any]]:
    found = []
    for rank in range(ranks):
        assert (folder / f"rank {rank}").exists(), said
        found.append(pickle.loads((folder / f"rank {rank}").read_bytes()))
    return found


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[Any]:
    """Start ranks as torchrun does, but with nobody who ends the others when one has died."""
    started: list[subprocess.Popen[str]] = []

    def run(case: str, **more: str) -> list[subprocess.Popen[str]]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", **more}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for rank in ("0", "1"):
            command = [sys.executable, str(SCRIPT), case, str(tmp_path)]
            started.append(start(command, RANK=rank, LOCAL_RANK=rank, **shared))
        return started

    yield run
    for process in started:
        process.kill()
        process.communicate()


def seen_by(folder: Path, rank: int, process: subprocess.Popen[str]) -> dict[str, Any]:
    said = finish(process)
    assert (folder / f"rank {rank}").exists(), said
    seen: dict[str, Any] = pickle.loads((folder / f"rank {rank}").read_bytes())
    return seen


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inline")
    said = finish(start([sys.executable, str(SCRIPT), "make_pictures", str(folder)]))
    return results(folder, 1, said)[0]


def assert_same(ones: list[np.ndarray], others: list[np.ndarray]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_rank_has_the_pictures_that_one_process_makes(
    torchrun: TorchRun, tmp_path: Path, inline: dict[str, Any], ranks: int
) -> None:
    for seen in torchrun("make_pictures", tmp_path, ranks, cold=ranks == 2):
        assert seen.keys() == inline.keys()
        for name, expected in inline.items():
            assert_same(seen[name], expected)


def test_ranks_agree_on_seeds_events_calls_aborts_and_sleep(
    torchrun: TorchRun, tmp_path: Path, inline: dict[str, Any]
) -> None:
    ranks = torchrun("talk", tmp_path)
    for rank, seen in enumerate(ranks):
        assert seen["own id"]
        assert seen["seed"] == ranks[0]["seed"]
        assert_same([seen["picture"]], [ranks[0]["picture"]])
        assert seen["events"][:2] == ["queued", "started"]
        assert "step" in seen["events"]
        assert seen["events"][-1] == "finished"

        assert [number for number, _ in seen["lambda"]] == [0, 1]
        assert len({pid for _, pid in seen["lambda"]}) == 2
        assert seen["one"] == 10
        assert seen["own arguments"] == [5, 6]
        assert seen["stats"] == {"finished": 1}
        assert "RPCError" in seen["raised"]
        assert "ZeroDivisionError" in seen["raised"]
        assert "On rank 0" in seen["raised"]
        assert "cannot be sent" in seen["unsendable"]
        assert "no rank 2" in seen["no rank"]

        assert seen["health answers"]
        assert seen["call while busy"] == [0, 1]
        assert seen["busy"] == "finished"
        assert seen["aborted"] == "aborted"
        assert seen["aborted at once"] == {"aborted"}
        assert seen["timeout"] == "timeout"
        assert_same([seen["after aborts"]], inline["together"][:1])
        assert_same([seen["after sleep"]], inline["together"][1:2])
        assert_same(seen["by priority"][:2], inline["together"][:2])
        assert seen["seeds"] == ranks[0]["seeds"], rank
        assert len(set(seen["seeds"])) == 4


def test_a_process_group_of_the_program_stays_the_programs(torchrun: TorchRun, tmp_path: Path) -> None:
    for rank, seen in enumerate(torchrun("with_own_group", tmp_path)):
        assert seen["keys"] == ([] if rank else ["images"])
        assert seen["whole"] == ([] if rank else ["images"])
        assert seen["steps"] == 40
        assert seen["gathered"] == [0, 1]
        assert seen["again"] == [1]


def test_a_request_that_differs_is_named_on_both_ranks(torchrun: TorchRun, tmp_path: Path) -> None:
    for seen in torchrun("differ_in_prompt", tmp_path):
        # Number 2 is the same on both, but was on its way with the one that is not.
        assert "Request number 3 differs between the ranks" in seen["errors"][1]
        for part in (
            "prompt is",
            "'for rank 0' on rank 0",
            "'for rank 1' on rank 1",
            "guidance_scale is",
            "1.0 on rank 0",
        ):
            assert part in seen["errors"][1]
        assert "seed" not in seen["errors"][1]
        assert "number 3 differs" in seen["health"]
        assert seen["after"] == ["error"]


@pytest.mark.parametrize("longer", [0, 1])
def test_a_request_too_many_is_an_error(torchrun: TorchRun, tmp_path: Path, longer: int) -> None:
    seen = torchrun("differ_in_number", tmp_path, LONGER_RANK=str(longer))[longer]
    assert f"ank {1 - longer} has closed its engine after 1 requests" in seen["error"]
    assert seen["seconds"] < 20


@pytest.mark.parametrize("longer", [0, 1])
def test_a_request_too_few_is_an_error_on_both_ranks_in_time(torchrun: TorchRun, tmp_path: Path, longer: int) -> None:
    for seen in torchrun("differ_in_number_and_stay", tmp_path, LONGER_RANK=str(longer)):
        assert f"Request number 2 (prompt = 'a red 2') came on rank {longer}" in seen["error"]
        assert f"but not on rank {1 - longer} within 3 s" in seen["error"]


def test_a_call_that_differs_is_named_on_both_ranks(torchrun: TorchRun, tmp_path: Path) -> None:
    for seen in torchrun("differ_in_call", tmp_path):
        for part in ("Call number 1 differs", "check_health", "stats"):
            assert part in seen["error"]
        assert seen["after"] == ["error"]


def test_configurations_that_differ_are_named_on_both_ranks(torchrun: TorchRun, tmp_path: Path) -> None:
    for seen in torchrun("differ_in_config", tmp_path):
        assert "stacking is" in seen["error"]
        assert "'off'" in seen["error"]


def test_a_rank_that_cannot_load_is_named_on_both_ranks(torchrun: TorchRun, tmp_path: Path) -> None:
    first, second = torchrun("fail_to_start", tmp_path)
    assert "Rank 1 could not start" in first["error"]
    assert all("no pipeline today" in seen["error"] for seen in (first, second))


def test_a_rank_that_makes_no_engine_is_named(torchrun: TorchRun, tmp_path: Path) -> None:
    assert "in vain for rank 1" in torchrun("never_come", tmp_path)[0]["error"]


def test_a_configuration_for_other_ranks_is_refused(torchrun: TorchRun, tmp_path: Path) -> None:
    for seen in torchrun("wrong_size", tmp_path):
        assert "torchrun started 2 processes" in seen["size"]
        assert "driver mode" in seen["replicas"]


@pytest.mark.parametrize("dying", [0, 1])
def test_a_rank_that_is_killed_ends_the_others_request_with_an_error(tmp_path: Path, by_hand: Any, dying: int) -> None:
    processes = by_hand("die", DYING_RANK=str(dying))
    assert finish(processes[dying]) is not None
    assert processes[dying].returncode == -signal.SIGKILL
    seen = seen_by(tmp_path, 1 - dying, processes[1 - dying])
    assert f"Rank {dying} (process {processes[dying].pid} on" in seen["error"]
    assert f"Rank {dying} (process" in seen["after"]
    assert seen["seconds"] < 10
    assert seen["closed after"] < 20


def test_a_rank_that_stands_still_ends_the_others_request_with_an_error(tmp_path: Path, by_hand: Any) -> None:
    processes = by_hand("stand_still")
    seen = seen_by(tmp_path, 0, processes[0])
    assert "cannot reach the others" in seen["error"]
    assert 2 < seen["seconds"] < 20


def test_a_rank_0_that_stands_still_is_noticed_though_nothing_is_asked_of_it(tmp_path: Path, by_hand: Any) -> None:
    processes = by_hand("stop_rank_0")
    seen = seen_by(tmp_path, 1, processes[1])
    assert f"Rank 0 (process {processes[0].pid} on" in seen["error"]
    assert "was not heard of for 10 s" in seen["error"]


def test_engines_may_be_closed_in_any_order(torchrun: TorchRun, tmp_path: Path) -> None:
    for seen in torchrun("close_in_order", tmp_path):
        for number in range(4):
            assert seen[f"seconds {number}"] < 25
        assert {seen["end 2"], seen["end 3"]} <= {"EngineClosedError", "RankGroupError"}


@pytest.mark.alone
def test_an_idle_engine_outlives_every_timeout_and_costs_nothing(torchrun: TorchRun, tmp_path: Path) -> None:
    for seen in torchrun("rest", tmp_path):
        # Processor time depends on how fast the machine is, the number of wake-ups does not: 4 were measured.
        assert seen["wake-ups"] < 12
        assert seen["load"] < 0.02
        assert seen["after"] == ["finished"]


def test_the_example_makes_the_pictures_of_driver_mode(tmp_path: Path) -> None:
    process = start([sys.executable, *TORCHRUN, "2", str(ROOT / "examples" / "spmd.py"), str(tmp_path)])
    said = finish(process)
    assert process.returncode == 0, said
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    requests = [OmniDiffusionRequest(prompt=f"a red {digit}", seed=seed) for seed, digit in enumerate(digits)]
    with DiffusionEngine(OmniDiffusionConfig(executor_class="torchrun", cfg_parallel_size=2)) as engine:
        outputs = engine.step(requests)
    for digit, output in zip(digits, outputs, strict=True):
        drawn = np.asarray(Image.open(tmp_path / f"{digit}.png"), dtype=int)
        # Whole numbers of 0 to 255: 1e-4 may fall on the edge between two.
        assert np.abs(drawn - np.asarray(output.raise_for_error().images[0], dtype=int)).max() <= 1
