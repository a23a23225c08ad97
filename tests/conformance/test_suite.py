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
    )
    assert "1 failed" in report
    assert "== (1, 2)" in report, "pytest did not rewrite the asserts of the suite"


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

    def run(body: str, only: str) -> str:
        file = tmp_path / "test_third_party.py"
        file.write_text("from omni_core.testing import ExecutorConformance\n" + body)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", "-k", only, str(file)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            check=False,
        )
        return done.stdout + done.stderr

    return run
