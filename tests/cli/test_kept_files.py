"""No file is ever replaced that `-o` does not name: for each ending and each kind of output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from omni_core.cli import atomic, names
from omni_core.media import formats, pictures, videos

KINDS = {
    "picture": ("--model", "cli_test_models:Painter"),
    "pictures": ("--model", "cli_test_models:Painter", "-n", "2"),
    "two requests": ("another", "--model", "cli_test_models:Painter"),
    "video": ("--model", "cli_test_models:Filmer"),
    "sound": ("--model", "cli_test_models:Singer"),
    "video with sound": ("--model", "cli_test_models:Talker"),
    "arrays": ("--model", "cli_test_models:Thinker"),
}
# What the file that was named holds. Anything else gets a name that is free.
FITTING = {
    "picture": {".png", ".jpg", ".jpeg", ".webp", ".gif"},
    "video": {".mp4", ".webm", ".webp", ".gif", ".npz", ".safetensors"},
    "sound": {".wav", ".npz", ".safetensors"},
    "video with sound": {".npz", ".safetensors"},
    "arrays": {".npz", ".safetensors"},
}
ENDINGS = (*formats.ENDINGS, ".PNG", ".Gif", ".NPZ")


def fill_folder():
    """Put a file of the user's at every name that could come into question, but those of the program's own."""
    for stem in ("keep", "keep-1", "keep-2", "a-1", "a-1-1", "a-1-2", "another-1"):
        for ending in ENDINGS:
            Path(stem + ending).write_text(f"the user's {stem}{ending}")
    return {path.name: path.read_bytes() for path in Path().iterdir()}


def changes(before):
    after = {path.name: path.read_bytes() for path in Path().iterdir()}
    assert set(before) <= set(after)
    return (
        {name for name in before if before[name] != after[name]},
        {name for name in after if name not in before},
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_only_the_file_that_was_named_is_replaced(omni, kind, ending):
    if ending in videos.NEEDS_PYAV:
        pytest.importorskip("av")
    before = fill_folder()
    result = omni("generate", "a", "--seed", 1, "-o", f"keep{ending}", *KINDS[kind])
    assert result.exit_code == 0, result.stderr
    replaced, new = changes(before)
    if ending.lower() in FITTING.get(kind, ()):
        assert (replaced, new) == ({f"keep{ending}"}, set())
    else:
        assert replaced == set()
        assert len(new) == (2 if kind in ("pictures", "two requests", "video with sound") else 1)
    assert not [name for name in new if name.startswith(".")]
    for name in replaced | new:
        assert name in result.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_omni_s_own_replace_nothing(omni, kind):
    before = fill_folder()
    for _ in range(2):
        assert omni("generate", "a", "--seed", 1, *KINDS[kind]).exit_code == 0
    replaced, new = changes(before)
    assert replaced == set()
    assert len(new) == (4 if kind in ("pictures", "two requests", "video with sound") else 2)


def test_a_gif_holds_a_picture(omni):
    Path("keep.png").write_text("mine")
    result = omni("generate", "a", "-o", "keep.gif", *KINDS["picture"])
    assert (result.exit_code, "Warning" in result.stderr) == (0, False)
    assert Path("keep.png").read_text() == "mine"
    with Image.open("keep.gif") as picture:
        assert (picture.format, picture.size, getattr(picture, "n_frames", 1)) == ("GIF", (256, 128), 1)
        assert b'"prompt": "a"' in picture.info["comment"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(omni, monkeypatch, links):
    """Between the choice of the name and the end of the encoder, somebody else writes a file of that name."""
    write_picture = pictures.write_picture

    def write_slowly(path, picture, provenance):
        write_picture(path, picture, provenance)
        Path("a-1.png").write_text("somebody else's")

    monkeypatch.setattr(pictures, "write_picture", write_slowly)
    if not links:  # as on a file system without hard links
        monkeypatch.setattr(atomic.os, "link", _no_links)
    result = omni("generate", "a", "--seed", 1, *KINDS["picture"])
    assert result.exit_code == 0, result.stderr
    assert Path("a-1.png").read_text() == "somebody else's"
    assert sorted(path.name for path in Path().iterdir()) == ["a-1-2.png", "a-1.png"]
    with Image.open("a-1-2.png") as picture:
        assert picture.size == (256, 128)


def _no_links(source, target):
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("dangling", [True, False])
def test_symbolic_links(omni, dangling):
    """One that was named is replaced, not what it points to; another is kept."""
    if not dangling:
        Path("target.png").write_text("mine")
    for name in ("keep.png", "a-1.png"):
        Path(name).symlink_to("target.png")
    assert omni("generate", "a", "--seed", 1, "-o", "keep.png", *KINDS["picture"]).exit_code == 0
    assert omni("generate", "a", "--seed", 1, *KINDS["picture"]).exit_code == 0
    assert Path("target.png").exists() != dangling
    assert dangling or Path("target.png").read_text() == "mine"
    assert Path("a-1.png").is_symlink()
    assert not Path("keep.png").is_symlink()
    assert Path("a-1-2.png").is_file()


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("-", "standard output"),
        ("pipe.png", "no ordinary file"),
        ("x.tiff", "pictures: .png, .jpg, .jpeg, .webp, .gif; videos: .mp4"),
        (".png", "the ending tells the format"),
        ("..", None),
        (f"{'x' * 300}.png", "too long"),
        (f"{'x' * 300}/", "too long"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_loaded(omni, monkeypatch, output, says):
    from omni_core.cli import run

    os.mkfifo("pipe.png")
    monkeypatch.setattr(run, "DiffusionEngine", None)
    if says is None:
        assert names.Target.parse(output).folder == Path(output)
        return
    result = omni("generate", "a", "-o", output)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert Path("pipe.png").is_fifo()


def test_latents_need_a_file_for_arrays(omni):
    for ending in formats.ENDINGS:
        result = omni("generate", "a", "--output-type", "latent", "-o", f"keep{ending}", *KINDS["picture"])
        assert (result.exit_code == 2) == (ending not in formats.ARRAYS), result.stderr
