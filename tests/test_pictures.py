"""The pictures in the README are what the scripts beside them make, and show commands that there are."""

from __future__ import annotations

import base64
import importlib.util
import io
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


def shown_lines(root):
    return {text.get("id"): "".join(text.itertext()) for text in root.iter(f"{SVG}text") if text.get("id")}


def test_the_recording_plays_where_no_script_and_no_other_file_is_allowed(recording):
    text = (IMAGES / "terminal.svg").read_text(encoding="utf-8")
    assert len(text.encode()) < 300_000
    assert recording.tag == f"{SVG}svg"
    assert not list(recording.iter(f"{SVG}script"))
    assert re.findall(r"url\(|@import|@font-face|foreignObject", text) == []
    for element in recording.iter():
        assert element.get("href", "#").startswith(("#", "data:image/png;base64,"))
        assert not any(name.startswith("on") for name in element.attrib)


def test_every_frame_of_the_recording_is_shown_and_has_its_lines(recording):
    style = recording.find(f"{SVG}style").text
    film = next(group for group in recording.iter(f"{SVG}g") if group.get("class") == "film")
    width = int(recording.get("width"))
    places = [int(re.search(r"\d+", frame.get("transform")).group()) for frame in film]
    assert places == [index * width for index in range(len(film))]
    steps = re.findall(r"([\d.]+)%\{transform:translateX\(-(\d+)px\)\}", style)
    assert [int(place) for _, place in steps] == [*places, places[-1]]
    assert [float(percent) for percent, _ in steps] == sorted({float(percent) for percent, _ in steps})
    defined = {element.get("id") for element in recording.iter() if element.get("id")}
    assert {use.get("href")[1:] for use in recording.iter(f"{SVG}use")} == defined


def test_the_recording_shows_the_commands_of_the_script_and_what_they_did(recording, load):
    lines = set(shown_lines(recording).values())
    commands = load("record_terminal").COMMANDS
    assert {f"$ {command}" for command in commands} <= lines
    assert any("━" in line and re.search(r"\d+/100", line) for line in lines), "no bar"
    pictures = [image.get("href").partition(",")[2] for image in recording.iter(f"{SVG}image")]
    assert len(pictures) == 4
    assert {Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures} == {(256, 256)}
    for name in ("omni-exec-multiproc", "omni-exec-torchrun"):
        assert any(name in line for line in lines)
    assert any("`export OMNI_DTYPE=float32`" in line for line in lines), "no cure"


def test_the_commands_that_are_recorded_exist(load):
    app = make_app()
    for line in load("record_terminal").COMMANDS:
        omni, name, *arguments = shlex.split(line)
        assert omni == "omni"
        command = app.get_command(click.Context(app), name)
        assert command is not None
        command.make_context(name, arguments)  # raises if there is no such flag


def test_frames_are_written_once_and_in_their_place(load):
    svg = load("animated_svg")
    line = (svg.Run(0, "a <b> & c", "#ff0000", True), svg.Run(12, "─"))
    picture = svg.Picture(b"\x89PNG", 3, 10, 2)
    frames = [svg.Frame(1.0, (line, ())), svg.Frame(3.0, ((), line), (picture,))]
    root = ET.fromstring(svg.write_svg(frames, 20, 4, "it's <a> title", still=0))
    assert list(shown_lines(root).values()) == ["a <b> & c─"]
    assert [use.get("y") for use in root.iter(f"{SVG}use")] == [None, str(svg.LINE), str(3 * svg.LINE)]
    style = root.find(f"{SVG}style").text
    assert "25.000%{transform:translateX(-200px)}" in style
    assert ".film{transform:translateX(-0px);animation:film 4.00s" in style
    assert root.get("aria-label") == root.find(f"{SVG}title").text == "it's <a> title"


def test_a_command_that_fails_is_not_recorded(load, tmp_path):
    recorder = load("record_terminal")
    chunks = list(recorder.run_in_terminal([sys.executable, "-c", "print(input.__name__)"], tmp_path))
    assert b"".join(data for _, data in chunks).split() == [b"input"]
    with pytest.raises(RuntimeError, match="ended with 3"):
        list(recorder.run_in_terminal([sys.executable, "-c", "raise SystemExit(3)"], tmp_path))


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
