"""Ranks see what the program sees, whatever it was started under, and a program that would start itself is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from omni_core.testing.programs import run_program

ODD = """
import os, signal, sys
from pathlib import Path

sys.path[:0] = [Path("/a/path"), ""]
sys.path += [f"/nowhere/{number}/" + "long" * 50 for number in range(1200)]
os.environ["LONG"] = "x" * 300_000
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
os.closerange(0, 2)
sys.argv = [None]
sys.executable = ""

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest

def seen(worker):
    import os, signal, sys
    dispositions = [signal.getsignal(number) == signal.SIG_DFL for number in (signal.SIGCHLD, signal.SIGTERM)]
    return sys.path, dispositions, os.environ.get("LONG"), [os.path.exists(f"/proc/self/fd/{fd}") for fd in range(3)]

config = OmniDiffusionConfig(
    executor_class="torchrun", model="omni_core.testing.pipelines:class_conditional", cfg_parallel_size=2
)
result = []
with DiffusionEngine(config) as engine:
    request = OmniDiffusionRequest(num_inference_steps=2, extra_args={"class_labels": [1]})
    result.append(engine.step([request])[0].finish_reason)
    for path, dispositions, long, files in engine.collective_rpc(seen):
        result.append(path == [entry for entry in sys.path if isinstance(entry, str)])
        result.append(long == os.environ["LONG"])
        result += [all(dispositions), all(files)]
    [[rank_0, *_]] = engine.executor.worker_pids()
    os.kill(rank_0, signal.SIGKILL)  # its launcher hears of it, and starts another
    result.append(engine.step([request], timeout=60)[0].finish_reason)
Path("result").write_text(repr(result))
"""


def test_under_all_odd_circumstances_at_once(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(ODD)
    done = run_program([sys.executable, "program.py"], folder=tmp_path, most_processes=10)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result").read_text() == repr(["finished", *[True] * 8, "finished"])


UNGUARDED = """
import sys
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.testing.pipelines import class_conditional

class Extension:
    pass

def build():
    return class_conditional()

print("the program runs", flush=True)
with DiffusionEngine(OmniDiffusionConfig(executor_class="torchrun", FIELDS)) as engine:
    request = OmniDiffusionRequest(num_inference_steps=2, extra_args={"class_labels": [1]})
    print(engine.step([request])[0].finish_reason)
"""


@pytest.mark.parametrize(
    "fields", ["model='rec:build'", pytest.param("worker_extension_cls='rec:Extension'", marks=pytest.mark.nightly)]
)
def test_a_script_that_every_rank_would_run_is_refused(fields: str, tmp_path: Path) -> None:
    (tmp_path / "rec.py").write_text(UNGUARDED.replace("FIELDS", fields))
    done = run_program([sys.executable, "rec.py"], folder=tmp_path, most_processes=10)
    assert done.returncode == 1
    assert done.stdout == "the program runs\n"
    last = done.stderr.partition("omni_core.errors.")[2]
    assert f"of {tmp_path / 'rec.py'}, while a worker of another engine loads" in last
    assert 'Put what makes the engine under `if __name__ == "__main__":`' in last


@pytest.mark.nightly
def test_a_factory_of_the_program_itself(tmp_path: Path) -> None:
    (tmp_path / "rec.py").write_text(UNGUARDED.replace("FIELDS", "model='__main__:build'"))
    done = run_program([sys.executable, "rec.py"], folder=tmp_path, most_processes=10)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the program runs\nfinished\n"
