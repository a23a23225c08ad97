"""The pictures in the README are what the scripts beside them make, and show commands that there are."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import click
import pytest
from PIL import Image

from omni_core.cli.app import make_app

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def load(monkeypatch):
    """Imports a script of docs/images."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, IMAGES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    monkeypatch.setattr(sys, "path", list(sys.path))
    return load


@pytest.fixture(scope="module")
def recording():
    return ET.parse(IMAGES / "terminal.svg").getroot()


def shown(root):
    return " ".join(" ".join("".join(text.itertext()).split()) for text in root.iter(f"{SVG}text"))


def test_the_picture_of_a_terminal_needs_no_script_and_no_other_file(recording):
    text = (IMAGES / "terminal.svg").read_text(encoding="utf-8")
    assert len(text.encode()) < 300_000
    assert recording.tag == f"{SVG}svg"
    assert not list(recording.iter(f"{SVG}script"))
    assert re.findall(r"url\((?!#)|@import|@font-face|foreignObject|https?://(?!www\.w3\.org)", text) == []
    for element in recording.iter():
        assert element.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in element.attrib)


def test_it_shows_the_commands_of_the_script_and_what_they_did(recording, load):
    text = shown(recording)
    for command in load("record_terminal").COMMANDS:
        assert f"$ {command[:60]}" in text
    assert text.count(".png") == 4
    for name in ("omni-exec-multiproc", "omni-exec-torchrun"):
        assert name in text
    assert "`--dtype float32`" in text, "no cure"


def test_the_commands_that_are_recorded_exist(load):
    app = make_app()
    for line in load("record_terminal").COMMANDS:
        omni, name, *arguments = shlex.split(line)
        assert omni == "omni"
        command = app.get_command(click.Context(app), name)
        assert command is not None
        command.make_context(name, arguments)  # raises if there is no such flag


def test_a_command_that_fails_is_not_shown(load, tmp_path):
    recorder = load("record_terminal")
    bar = "import sys; sys.stdout.write('1/2\\r2/2\\nend\\n')"
    assert recorder.run([sys.executable, "-c", bar], tmp_path) == "2/2\nend"
    with pytest.raises(subprocess.CalledProcessError):
        recorder.run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_the_grid_is_what_its_script_asks_for(load):
    grid = load("make_grid")
    prompts = grid.prompts()
    assert len(set(prompts)) == len(prompts) == 40
    assert prompts[0] == "a red zero"
    assert prompts[13] == "a blue three on yellow"
    made = grid.paste([Image.new("RGB", (32, 32), "red")] * len(prompts))
    assert made.size == Image.open(IMAGES / "digits.png").size


@pytest.mark.parametrize("script", ["make_grid.py", "record_terminal.py"])
def test_scripts_say_how_they_are_used(script):
    done = subprocess.run(
        [sys.executable, IMAGES / script, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert f"usage: {script}" in done.stdout
    assert "--output" in done.stdout
