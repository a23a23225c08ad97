"""The diagrams show the code as it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.known_names import SOURCES, find
from docs.pages import ROOT

DIAGRAMS = ROOT / "docs" / "diagrams"
PICTURES = sorted(DIAGRAMS.glob("*.svg"))


def texts_of(picture: Path) -> list[ElementTree.Element]:
    return [element for element in ElementTree.parse(picture).iter() if element.tag.endswith("}text")]


def names_of(picture: Path) -> list[str]:
    return [name for element in texts_of(picture) if (name := element.get("data-name"))]


def test_all_are_here():
    assert [picture.stem for picture in PICTURES] == ["failure", "processes", "request_path"]
    assert all(picture.with_suffix(".py").is_file() for picture in PICTURES)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_every_name_exists(picture):
    names = names_of(picture)
    assert names
    for name in names:
        find(name)


def test_every_thread_is_one_of_ours():
    source = "".join(file.read_text(encoding="utf-8") for folder in SOURCES for file in folder.rglob("*.py"))
    threads = {
        text for element in texts_of(DIAGRAMS / "processes.svg") if (text := element.text or "").startswith("omni-")
    }
    assert "omni-engine" in threads
    for thread in threads:
        is_executor = re.search(rf"class {thread.removeprefix('omni-')}\b", source)  # the thread bears its name
        assert is_executor or f'"{thread}"' in source, thread


def test_every_event_is_one():
    from omni_core.engine.handle import EventKind

    for element in texts_of(DIAGRAMS / "failure.svg"):
        if element.get("data-name") == "omni_core.engine.handle.RequestEvent":
            assert (element.text or "").split()[0] in EventKind.__args__


def test_a_request_still_takes_that_way(tmp_path, warm_python):
    code = (
        "import json, request_path\n"
        "print(json.dumps([f'{call.callee}.{call.method}' for call in request_path.record()]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(DIAGRAMS), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*warm_python.command(), "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = set(json.loads(done.stdout.splitlines()[-1]))
    drawn = {
        name for name in names_of(DIAGRAMS / "request_path.svg") if name.rpartition(".")[2][0].islower() or "._" in name
    }
    # Without a core to spare, autoencoders run in the task itself.
    assert drawn - seen <= {"omni_core.worker.task.task.PipelineTask.resume_side"}
    assert seen <= drawn
