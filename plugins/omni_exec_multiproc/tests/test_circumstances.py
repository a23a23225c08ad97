"""Programs under odd circumstances have workers that see what the program sees; the core's tests have more."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from omni_core.forking.starter import can_fork
from omni_core.testing.programs import run_program

PROGRAM = """
import os, signal, sys
from pathlib import Path
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
BEFORE

def seen(worker):
    import os, signal, sys
    def dispositions():
        return [str(signal.getsignal(number)) for number in (signal.SIGCHLD, signal.SIGTERM)]
    return sys.path, dispositions(), os.environ.get("LONG"), [os.path.exists(f"/proc/self/fd/{fd}") for fd in range(3)]

config = OmniDiffusionConfig(executor_class="multiproc", model="omni_core.testing.pipelines:class_conditional", FIELDS)
result = []
with DiffusionEngine(config) as engine:
    request = OmniDiffusionRequest(num_inference_steps=2, extra_args={"class_labels": [1]})
    result.append(engine.step([request])[0].finish_reason)
    for path, dispositions, long, files in engine.collective_rpc(seen):
        result.append(path == [entry for entry in sys.path if isinstance(entry, str)])
        result.append(dispositions == [str(signal.SIG_DFL)] * 2)
        result.append(long == os.environ.get("LONG"))
        result.append(all(files))
    for _ in range(2):  # a worker that dies is replaced, by what has started it
        [old], *_ = engine.executor.worker_pids()
        server = int(Path(f"/proc/{old}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(old, signal.SIGKILL)
        result.append(engine.step([request], timeout=60)[0].finish_reason)
        [new], *_ = engine.executor.worker_pids()
        result.append(new != old and server == int(Path(f"/proc/{new}/stat").read_text().rpartition(")")[2].split()[1]))
Path("result").write_text(repr(result))
"""
EVERYTHING = """
sys.path[:0] = [Path("/a/path"), ""]
sys.path += [f"/nowhere/{number}/" + "long" * 50 for number in range(1200)]
os.environ["LONG"] = "x" * 300_000
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
os.closerange(0, 2)
os.environ["TMPDIR"] = "/proc/1"
sys.argv = [None]
sys.executable = ""
"""


def run(folder: Path, before: str, fields: str, *command: str, most_processes: int = 8) -> str:
    file = folder / "program.py"
    file.write_text(PROGRAM.replace("BEFORE", before).replace("FIELDS", fields))
    done = run_program([*command, sys.executable, str(file)], folder=folder, most_processes=most_processes)
    assert done.returncode == 0, done.stderr
    return (folder / "result").read_text()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_everything_at_once(method: str, tmp_path: Path) -> None:
    if method == "forkserver" and not can_fork():
        pytest.skip("there are no fork servers on this system")
    result = run(tmp_path, EVERYTHING, f"executor_options={{'start_method': {method!r}}}")
    assert result == repr(["finished", True, True, True, True, *["finished", True] * 2])


def test_two_ranks_under_a_umask_that_shuts_out_this_user(tmp_path: Path) -> None:
    command = []
    if shutil.which("setpriv"):  # for whom permissions do not count
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    before = "os.umask(0o777)"
    fields = "cfg_parallel_size=2, executor_options={'start_method': 'forkserver'}"
    program = (
        PROGRAM.partition("    for _ in range(2)")[0] + "    os.umask(0o022)\nPath('result').write_text(repr(result))\n"
    )
    file = tmp_path / "program.py"
    file.write_text(program.replace("BEFORE", before).replace("FIELDS", fields))
    done = run_program([*command, sys.executable, str(file)], folder=tmp_path, most_processes=8)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result").read_text() == repr(["finished", *[True] * 8])


FEW_FILES = """
import os, resource
from omni_core import DiffusionEngine, OmniDiffusionConfig
import omni_exec_multiproc.executor
limit = len(os.listdir("/proc/self/fd")) - 1 + MORE
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
DiffusionEngine(OmniDiffusionConfig(executor_class="multiproc", executor_options={"start_method": "METHOD"}))
"""


@pytest.mark.parametrize(("more", "method"), [(2, "spawn"), (4, "forkserver"), (6, "spawn"), (8, "forkserver")])
def test_few_files(more: int, method: str, tmp_path: Path) -> None:
    code = FEW_FILES.replace("MORE", str(more)).replace("METHOD", method)
    done = run_program([sys.executable, "-c", code], folder=tmp_path, most_processes=8)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("omni_core.errors.StartupError: ")
    assert "Too many open files" in last


def test_a_pythonhome_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    before = "os.environ['PYTHONHOME'] = '/nowhere'"
    for method in ("forkserver", "spawn"):
        file.write_text(
            PROGRAM.replace("BEFORE", before).replace("FIELDS", f"executor_options={{'start_method': {method!r}}}")
        )
        done = run_program([sys.executable, str(file)], folder=tmp_path, most_processes=8)
        assert done.returncode == 1
        assert "StartupError" in done.stderr
        assert "PYTHONHOME = '/nowhere'" in done.stderr, "what Python said about it"
