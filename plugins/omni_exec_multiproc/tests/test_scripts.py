"""Programs that use worker processes as people write them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest

def here(worker):
    return Mine(worker.replica).replica

class Mine:
    def __init__(self, replica):
        self.replica = replica

print("main runs", flush=True)
config = OmniDiffusionConfig(
    executor_class="multiproc", model="omni_core.testing.pipelines:class_conditional", data_parallel_size=2,
    executor_options={"start_method": "METHOD"},
)
def run():
    with DiffusionEngine(config) as engine:
        requests = [OmniDiffusionRequest(num_inference_steps=2, extra_args={"class_labels": [1]}) for _ in range(4)]
        print([output.finish_reason for output in engine.step(requests)], engine.collective_rpc(here), flush=True)
"""
RUN = SCRIPT + "run()\n"
IN_A_THREAD = SCRIPT + "import threading\nthread = threading.Thread(target=run)\nthread.start()\nthread.join()\n"
# Left to the end of the interpreter: no close, no context manager.
NOT_CLOSED = (
    SCRIPT.replace("with DiffusionEngine(config) as engine:", "engine = DiffusionEngine(config)\n    if True:")
    + "run()\n"
)
KEPT = "import builtins\n" + NOT_CLOSED.replace("    if True:", "    builtins.kept = engine\n    if True:")


@pytest.mark.parametrize(
    ("how", "method"),
    [
        *((how, "forkserver") for how in ("file", "-c", "stdin", "thread", "not closed", "kept")),
        ("file", "spawn"),
        ("thread", "spawn"),
    ],
)
def test_scripts_need_no_main_guard(how: str, method: str, tmp_path: Path) -> None:
    code = {"thread": IN_A_THREAD, "not closed": NOT_CLOSED, "kept": KEPT}.get(how, RUN).replace("METHOD", method)
    file = tmp_path / "script.py"
    file.write_text(code)
    command = {"-c": [sys.executable, "-c", code], "stdin": [sys.executable, "-"]}.get(how, [sys.executable, str(file)])
    done = subprocess.run(
        command,
        input=code if how == "stdin" else None,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("main runs") == 1, "a worker ran the script again"
    assert "['finished', 'finished', 'finished', 'finished'] [0, 1]" in done.stdout


def test_ctrl_c_reaches_the_program_and_not_the_workers(tmp_path: Path) -> None:
    code = RUN.replace("METHOD", "forkserver").replace(
        "        requests =",
        "        import os, signal\n"
        "        signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a shell runs with &
        "        pids = engine.executor.worker_pids()\n"
        "        try:\n            os.killpg(0, signal.SIGINT)\n            import time; time.sleep(30)\n"
        "        except KeyboardInterrupt:\n            print('interrupted', flush=True)\n"
        "        assert engine.executor.worker_pids() == pids\n        requests =",
    )
    file = tmp_path / "script.py"
    file.write_text(code)
    done = subprocess.run(
        [sys.executable, str(file)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,  # a process group of its own, as of a terminal's foreground job
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "interrupted" in done.stdout
    assert "finished" in done.stdout
    assert "Traceback" not in done.stderr
