from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

BROKEN = Path(__file__).parents[1] / "conformance"


@pytest.fixture
def check(omni_process):
    """Runs `omni plugins check`, able to import the broken executors of tests/conformance."""

    def run(*arguments, **environment):
        paths = [*environment.pop("paths", []), str(BROKEN), os.environ["PYTHONPATH"]]
        return omni_process(
            "plugins", "check", *arguments, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
        )

    return run


def test_an_executor_that_conforms(check):
    done = check("inline", "--only", "one_reply or steps_are_counted or killed_worker_is_replaced or idle_engine")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    table = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()][:3] for row in rows if len(row) > 3}
    assert table["calls (RPC)"] == ["1", "-", "-"]
    assert table["abort, progress"] == ["1", "-", "-"]
    assert table["crash, hang"] == ["-", "-", "1"]
    assert table["all"] == ["3", "-", "1"]
    assert "1 tests: worker_pids names no processes" in done.stdout
    assert "test_an_idle_engine_closes_quickly" in done.stdout, "measurements are shown"
    assert done.stdout.rstrip().endswith("inline conforms: 3 tests passed, 1 not supported.")
    themes = ["life cycle …", "calls (RPC) …", "abort, progress …", "crash, hang …"]
    assert sorted(done.stderr.splitlines()) == sorted(themes), "a line for each theme where there is no terminal"


def test_an_executor_that_does_not_conform(check):
    done = check("broken_executors:WrongSeeds", "--only", "equal_to_the_bare or no_requests")
    assert done.returncode == 1
    assert "FAILED test_equal_to_the_bare_pipeline" in done.stdout
    assert "The picture is that of the pipeline called by hand" in done.stdout, "what was promised"
    assert "differs from the inline executor by" in done.stdout, "what happened"
    assert "fails 1 of 2 tests: test_equal_to_the_bare_pipeline" in done.stdout


def test_json(check):
    done = check("broken_executors:WrongSeeds", "--json", "--only", "equal_to_the_bare or no_requests or driver_ends")
    assert done.returncode == 1
    outcomes = {one["name"]: one for one in json.loads(done.stdout)}
    assert outcomes["test_no_requests"]["result"] == "passed"
    assert outcomes["test_no_requests"]["theme"] == "results"
    assert outcomes["test_equal_to_the_bare_pipeline"]["result"] == "failed"
    assert outcomes["test_the_driver_ends[SIGKILL-idle]"]["result"] == "not supported"


def test_options_and_settings_reach_the_executor(check):
    done = check("inline", "-o", "no_such=1", "--only", "no_requests")
    assert done.returncode == 1
    assert "executor_options sets no_such" in done.stdout
    done = check("inline", "-s", "device=no-such-device", "--only", "no_requests")
    assert done.returncode == 1
    assert "no-such-device" in done.stdout


def test_the_users_own_pytest_settings_stay_out(check, tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('must not be loaded')\n")
    (tmp_path / "omni.toml").write_text("max_num_seqs = 'none'\n")
    done = check("inline", "--only", "no_requests", PYTEST_ADDOPTS="--no-such-option", OMNI_MAX_NUM_SEQS="none")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["inlin"], 3, "Did you mean 'inline'?"),
        (["inline", "--only", "no_such_test"], 3, "no test matches 'no_such_test'"),
        ([], 2, "Missing argument 'EXECUTOR'"),
    ],
)
def test_what_cannot_be_checked(check, arguments, code, says):
    done = check(*arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_without_pytest(check, tmp_path):
    (tmp_path / "pytest.py").write_text("raise ModuleNotFoundError(\"No module named 'pytest'\", name='pytest')\n")
    done = check("inline", paths=[str(tmp_path)])
    assert done.returncode == 1
    assert "pip install 'omni-core[testing]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_list_is_what_comes_without_a_subcommand(omni):
    assert "omni-core" in omni("plugins").stdout
    assert json.loads(omni("plugins", "--json").stdout)
    assert "check" in omni("plugins", "--help").stdout
