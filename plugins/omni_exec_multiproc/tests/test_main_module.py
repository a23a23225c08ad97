"""Factories in the program itself: by value where that can be, an error that says why where it cannot, never a bomb."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from omni_core.forking.warm import SharedServer
from omni_core.testing.programs import run_program

SCRIPT = """
import sys
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.testing.pipelines import class_conditional

NINE = 9

class Marker:
    pass

class Extension:
    def nine(self):
        return NINE, sys.argv[1:]

def build(marker=None):
    pipeline = class_conditional()
    pipeline.built_in = __name__
    return pipeline

BEFORE
print("the program runs", flush=True)
with DiffusionEngine(OmniDiffusionConfig(executor_class="multiproc", executor_options=OPTIONS, FIELDS)) as engine:
    request = OmniDiffusionRequest(num_inference_steps=2, extra_args={"class_labels": [1]})
    print(engine.step([request])[0].finish_reason, engine.collective_rpc("nine") if "ext" in "FIELDS" else "")
"""


def program(options: dict[str, Any], fields: str, before: str = "") -> str:
    return SCRIPT.replace("OPTIONS", repr(options)).replace("FIELDS", fields).replace("BEFORE", before)


def options_of(method: str, warm_server: SharedServer) -> dict[str, Any]:
    return warm_server.options if method == "shared" else {"start_method": method}


@pytest.mark.parametrize("method", ["shared", "forkserver", "spawn"])
@pytest.mark.parametrize("fields", ["model='rec:build'", "worker_extension_cls='rec:Extension'"])
def test_a_script_that_every_worker_would_run(
    method: str, fields: str, warm_server: SharedServer, tmp_path: Path
) -> None:
    if method == "forkserver" and "extension" in fields:
        pytest.skip("as with a shared one")
    (tmp_path / "rec.py").write_text(program(options_of(method, warm_server), fields))
    done = run_program([sys.executable, "rec.py"], folder=tmp_path, most_processes=8)
    assert done.returncode == 1
    assert done.stdout == "the program runs\n"
    last = done.stderr.partition("omni_core.errors.")[2]
    assert f"{fields.replace('=', ' = ')} cannot be imported: An engine is made in line " in last
    assert f"of {tmp_path / 'rec.py'}, while a worker of another engine loads" in last
    assert 'Put what makes the engine under `if __name__ == "__main__":`' in last


@pytest.mark.parametrize("how", ["file", "-c", "stdin", "-m", "spawn"])
def test_a_factory_and_an_extension_of_the_program_itself(how: str, warm_server: SharedServer, tmp_path: Path) -> None:
    fields = "model=build, worker_extension_cls='__main__:Extension', model_options={'marker': Marker()}"
    code = program(options_of("spawn" if how == "spawn" else "shared", warm_server), fields)
    package = tmp_path / "rec"
    package.mkdir()
    for file in (package / "__main__.py", package / "__init__.py", tmp_path / "script.py"):
        file.write_text("" if file.stem == "__init__" else code)
    command = {"-c": ["-c", code], "stdin": ["-"], "-m": ["-m", "rec"]}.get(how, ["script.py"])
    done = run_program(
        [sys.executable, *command, "one", "--two"],
        folder=tmp_path,
        most_processes=8,
        stdin=code if how == "stdin" else None,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the program runs\nfinished [(9, ['one', '--two'])]\n"


@pytest.mark.parametrize(
    ("fields", "before", "reason"),
    [
        ("model='__main__:later'", "", "has no 'later' at its top"),
        (
            "model='__main__:locked'",
            "import threading\nlock = threading.Lock()\ndef locked():\n    return lock and build()",
            "cannot be sent to worker processes, which have a __main__ of their own",
        ),
        ("model=lambda: build()", "", "define a function at the top of a module"),
    ],
)
def test_what_cannot_be_sent(fields: str, before: str, reason: str, warm_server: SharedServer, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(program(warm_server.options, fields, before))
    done = run_program([sys.executable, "script.py"], folder=tmp_path, most_processes=8)
    assert done.returncode == 1
    assert "omni_core.errors.ConfigError" in done.stderr
    assert reason in done.stderr


def test_what_is_started_runs_the_program_again(tmp_path: Path) -> None:
    # As where an application was frozen into one file, or embeds Python: `sys.executable` is the application.
    application = tmp_path / "application"
    application.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'script.py'}\n")
    application.chmod(0o755)
    before = f"""
import multiprocessing
sys.executable = {str(application)!r}
multiprocessing.set_executable(sys.executable)
"""
    (tmp_path / "script.py").write_text(program({"start_method": "spawn"}, "model='__main__:build'", before))
    done = run_program([str(application)], folder=tmp_path, most_processes=8)
    assert done.returncode == 1
    assert f"{application} is no Python interpreter" in done.stderr
    assert "multiprocessing.set_executable" in done.stderr


@pytest.mark.parametrize("executor", ["multiproc", "inline"])
def test_an_engine_in_a_worker(executor: str, warm_server: SharedServer, tmp_path: Path) -> None:
    before = f"""
def nested(worker):
    with DiffusionEngine(OmniDiffusionConfig(executor_class={executor!r})) as engine:
        return engine.pipeline_info.model
"""
    code = program(warm_server.options, "model='__main__:build'", before)
    code = code.replace('engine.collective_rpc("nine") if "ext" in', "engine.collective_rpc(nested) if 1 or")
    (tmp_path / "script.py").write_text(code)
    done = run_program([sys.executable, "script.py"], folder=tmp_path, most_processes=8)
    if executor == "inline":
        assert done.stdout.endswith("finished ['omni/digits']\n"), done.stderr
    else:
        assert "cannot be made in a worker process" in done.stderr
