from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

BROKEN = Path(__file__).parents[1] / "conformance"


@pytest.fixture
def check(warm_python):
    """Runs `omni plugins check`, able to import the broken executors of tests/conformance."""

    def run(*arguments, **environment):
        paths = [*environment.pop("paths", []), str(BROKEN), os.environ["PYTHONPATH"]]
        return subprocess.run(
            [*warm_python.command(), "-m", "omni_core", "plugins", "check", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    return run


def test_an_executor_that_conforms(check):
    done = check("inline", "--only", "one_reply or steps_are_counted or killed_worker_is_replaced or idle_engine")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    table = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()][:3] for row in rows if len(row) > 3}
    assert table["calls"] == ["1", "-", "-"]
    assert table["progress"] == ["1", "-", "-"]
    assert table["crashes"] == ["-", "-", "1"]
    assert table["all"] == ["3", "-", "1"]
    assert "1 promises: worker_pids names no processes" in done.stdout
    assert "test_an_idle_engine_closes_quickly" in done.stdout, "measurements are shown"
    assert done.stdout.rstrip().endswith("inline conforms: 3 promises kept, 0 broken, 1 not supported.")
    themes = ["lifecycle …", "calls …", "progress …", "crashes …"]
    assert sorted(done.stderr.splitlines()) == sorted(themes), "a line for each theme where there is no terminal"


def test_an_executor_that_does_not_conform(check):
    done = check("broken_executors:WrongSeeds", "--only", "equal_to_the_bare or no_requests or metrics")
    assert done.returncode == 1
    assert done.stdout.startswith(
        "BROKEN results: test_equal_to_the_bare_pipeline\n"
        "  It must: The picture is that of the pipeline called by hand with a generator of the same seed.\n"
        "  It did:  "
    )
    assert "WrongSeeds.execute_step broke its contract: seed is 4, and the request has 3." in done.stdout
    assert "BROKEN results: test_metrics\n  It must: The output tells its seed, steps and times.\n" in done.stdout
    assert "WrongSeeds.execute_step broke its contract: seed is 9, and the request has 8.\n" in done.stdout
    assert "does not conform: 1 promises kept, 2 broken, 0 not supported" in done.stdout
    again = "omni plugins check broken_executors:WrongSeeds --only test_equal_to_the_bare_pipeline --traceback"
    assert done.stdout.rstrip().endswith(f"Where the first is broken: {again}")
    assert len(done.stdout.splitlines()) < 20
    shown = check(*again.split()[3:])
    assert "assert output.finish_reason ==" in shown.stdout, "the long form, as pytest has it"


def test_what_goes_wrong_again_and_again_is_told_once(check):
    done = check("broken_executors:DoesNotServe", "--only", "lifecycle", "--only", "sleep", "--patience", "5")
    assert done.returncode == 1
    assert done.stdout.count("the worker is on strike") == 1
    assert "The same as in test_starts_serves_and_is_healthy happened in " in done.stdout
    assert len(done.stdout.splitlines()) < 100


def test_the_first_failure_ends_it(check):
    done = check("broken_executors:WrongSeeds", "--only", "results", "--fail-fast")
    assert done.stdout.count("BROKEN results") == 1
    assert "0 promises kept, 1 broken, 0 not supported" in done.stdout
    assert "those after it were not tried" in done.stdout


def test_a_theme_is_taken_as_it_is_printed(check):
    done = check("inline", "--only", "payloads", "--only", "no_requests", "--json")
    assert done.returncode == 0
    outcomes = json.loads(done.stdout)
    assert {one["theme"] for one in outcomes} == {"payloads", "results"}
    assert [one["name"] for one in outcomes if one["theme"] == "results"] == ["test_no_requests"]
    assert len(outcomes) > 15


def test_json(check):
    done = check("broken_executors:WrongSeeds", "--json", "--only", "equal_to_the_bare or no_requests or driver_ends")
    assert done.returncode == 1
    outcomes = {one["name"]: one for one in json.loads(done.stdout)}
    assert outcomes["test_no_requests"]["result"] == "kept"
    assert outcomes["test_no_requests"]["theme"] == "results"
    wrong = outcomes["test_equal_to_the_bare_pipeline"]
    assert wrong["result"] == "broken"
    assert wrong["did"].endswith("WrongSeeds.execute_step broke its contract: seed is 4, and the request has 3.")
    assert "assert output.finish_reason ==" in wrong["detail"]
    assert outcomes["test_the_driver_ends[SIGKILL-idle]"]["result"] == "not supported"
    assert outcomes["test_the_driver_ends[SIGKILL-idle]"]["did"] == "worker_pids names no processes"


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
        (["inline", "--only", "no_such_test"], 3, "no test matches 'no_such_test'. Themes: lifecycle, results, calls,"),
        (["inline", "--only", "a b"], 3, "'a b' is neither a theme nor an expression"),
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
