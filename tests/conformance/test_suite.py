"""What the suite promises of itself."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from omni_core.testing import ExecutorConformance
from omni_core.testing.check import NOT_SUPPORTED
from omni_core.testing.footprint import descendants, is_held_by_others, shared_memory_entries
from omni_core.testing.injection import end_process, fault


def suite_tests() -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(ExecutorConformance) if name.startswith("test_")}


def test_there_are_at_least_fifty_tests_and_each_says_what_it_promises() -> None:
    promises = [inspect.getdoc(test) for test in suite_tests().values()]
    assert len(promises) >= 50
    assert all(promises)
    assert len(set(promises)) == len(promises)


SEMAPHORE = """
import multiprocessing
import sys

lock = multiprocessing.get_context("spawn").Lock()
print(lock._semlock.name.removeprefix("/"), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="semaphores have no files here")
def test_what_another_program_has_in_shared_memory_is_known_to_be_its_own() -> None:
    command = [sys.executable, "-c", SEMAPHORE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        entry = f"sem.{program.stdout.readline().strip()}"
        assert entry in shared_memory_entries()
        assert is_held_by_others(entry, {os.getpid()})
        assert not is_held_by_others(entry, {os.getpid(), program.pid, *descendants(program.pid)})
        assert not is_held_by_others("sem.of-nobody", {os.getpid()})
        program.communicate("", timeout=30)


def test_no_theme_hides_a_test_of_another() -> None:
    themes = [cls for cls in ExecutorConformance.__mro__ if "theme" in vars(cls)]
    names = [name for cls in themes for name in vars(cls) if name.startswith("test_")]
    assert sorted(names) == sorted(set(names))
    assert set(names) == set(suite_tests())


def test_importing_the_suite_imports_no_torch() -> None:
    code = """
import sys
import omni_core.testing
assert "pytest" not in sys.modules, "workers import the package too, and need no pytest"
omni_core.testing.ExecutorConformance
import omni_core.testing.check
assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_without_pytest_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import omni_core.testing

    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'omni-core\[testing\]'"):
        omni_core.testing.__getattr__("ExecutorConformance")


def test_a_subclass_without_an_executor_fails_and_does_not_pass_by_default(pytester_run: Any) -> None:
    report = pytester_run("class TestNothing(ExecutorConformance):\n    pass\n", "no_requests")
    assert "TestNothing must set executor_class" in report
    assert "1 error" in report or "1 failed" in report


def test_what_is_not_declared_is_reported_as_not_supported(pytester_run: Any) -> None:
    report = pytester_run("class TestInline(ExecutorConformance):\n    executor_class = 'inline'\n", "test_two_workers")
    assert NOT_SUPPORTED in report
    assert "2 skipped" in report


def test_asserts_of_the_suite_show_their_values(pytester_run: Any) -> None:
    report = pytester_run(
        "class TestInline(ExecutorConformance):\n"
        "    executor_class = 'inline'\n"
        "    def expected(self, request, model='', **config):\n"
        "        return {'images': [[1.0, 2.0]]}\n",
        "order_of_outputs",
        "-v",
    )
    assert "1 failed" in report
    assert "assert found.shape == wanted.shape" in report
    assert "== (1, 2)" in report, "pytest did not rewrite the asserts of the suite"


WRONG_SEED = """
class TestInline(ExecutorConformance):
    executor_class = "inline"

    def request(self, **fields):
        request = super().request(**fields)
        return request.model_copy(update={"seed": request.seed + 1})

    def test_of_its_own(self):
        values = [1]
        assert values == [2]
"""


def test_plain_pytest_says_what_was_promised_and_what_was_done(pytester_run: Any) -> None:
    report = pytester_run(WRONG_SEED, "test_metrics or test_no_requests or test_two_workers or test_of_its_own", "-rf")
    assert "It must: The output tells its seed, steps and times.\nIt did:  output.seed is 9, not 8.\n" in report
    assert "FAILED test_third_party.py::TestInline::test_metrics - output.seed is 9, not 8." in report
    assert "TestInline: of 4 promises, 1 kept, 1 broken, 2 not supported" in report, report
    assert "assert [1] == [2]" in report, "a test of the author's own is reported as pytest does"
    assert "metrics.queue_s" not in report, "no source of the suite"
    assert len(report.splitlines()) < 45


def test_a_test_can_be_left_out_with_a_reason_or_replaced(pytester_run: Any) -> None:
    body = (
        "class TestInline(ExecutorConformance):\n"
        "    executor_class = 'inline'\n"
        "    not_supported = {'test_metrics': 'the clock is broken', 'test_forms_of_output[pil]': 'no pictures'}\n"
        "    def test_no_requests(self):\n"
        "        print('replaced')\n"
    )
    report = pytester_run(body, "metrics or forms_of_output or no_requests", "-rs", "-s")
    assert "4 passed, 2 skipped" in report
    assert "not supported: the clock is broken" in report
    assert "not supported: no pictures" in report
    assert "replaced" in report


def test_a_test_that_is_left_out_must_exist(pytester_run: Any) -> None:
    body = (
        "class TestX(ExecutorConformance):\n    executor_class = 'inline'\n    not_supported = {'test_metrix': 'x'}\n"
    )
    report = pytester_run(body, "no_requests")
    assert "not_supported names 'test_metrix', which is no test of the suite. Did you mean 'test_metrics'?" in report


def test_themes_are_single_words_and_none_begins_with_another() -> None:
    found = [vars(cls)["theme"] for cls in ExecutorConformance.__mro__ if vars(cls).get("theme")]
    assert len(found) == 13
    assert all(theme.isalpha() for theme in found)
    assert not [(one, other) for one in found for other in found if one != other and one.startswith(other)]


def test_a_hang_is_ended_by_the_watchdog_and_shows_where(pytester_run: Any) -> None:
    report = pytester_run(
        "import threading\n"
        "class TestInline(ExecutorConformance):\n"
        "    executor_class = 'inline'\n"
        "    test_timeout_s = 0.5\n"
        "    def test_hanging_forever(self):\n"
        "        threading.Event().wait(60)\n",
        "hanging_forever",
    )
    assert "1 failed" in report
    assert "did not end within 0.5 s" in report


def test_a_fault_spares_the_process_of_the_tests() -> None:
    with pytest.raises(RuntimeError, match="would end the process of the tests"):
        end_process("exit", fault("exit")["spared_pid"])


@pytest.fixture
def pytester_run(tmp_path: Any) -> Any:
    """Run pytest on a file of a third party's, and return what it prints."""

    def run(body: str, only: str, *more: str) -> str:
        file = tmp_path / "test_third_party.py"
        file.write_text("from omni_core.testing import ExecutorConformance\n" + body)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", "-k", only, *more, str(file)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            # Where these are set pytest shortens nothing.
            env={name: value for name, value in os.environ.items() if name not in ("CI", "BUILD_NUMBER")},
            check=False,
        )
        return done.stdout + done.stderr

    return run
