from __future__ import annotations

import io
import json
import os
import stat
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence
from safetensors import safe_open

from omni_core import OmniDiffusionRequest, __version__
from omni_core.cli.atomic import remove_unfinished, write_atomically
from omni_core.media import arrays, pictures, sound, videos
from omni_core.media.provenance import Provenance

REQUEST = OmniDiffusionRequest(
    prompt="ein Bär 🐻", seed=7, extra_args={"image": Image.new("RGB", (2, 2)), "strength": 0.5}
)
PROVENANCE = Provenance(REQUEST, {"image": "@bear.png"}, "omni/digits", "SomePipeline", 2, 3, 4)


def test_nothing_is_left_of_a_file_whose_encoder_fails(tmp_path):
    (tmp_path / "x.png").write_bytes(b"before")

    def fail(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    for name in ("x.png", "new/y.png"):
        with pytest.raises(OSError, match="disk full"):
            write_atomically(tmp_path / name, fail)
    assert (tmp_path / "x.png").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "x.png"]


def test_an_interrupt_while_writing_leaves_nothing(tmp_path):
    def interrupt(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x.png", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_at_once_leaves_nothing(tmp_path):
    """A second Ctrl-C ends the process without its `finally` blocks."""

    def end(path):
        path.write_bytes(b"half")
        remove_unfinished()
        assert list(tmp_path.iterdir()) == []
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x.png", end)


def test_the_file_is_in_the_same_folder_and_keeps_its_ending_while_written(tmp_path):
    seen = []
    write_atomically(tmp_path / "x.png", lambda path: (seen.append(path), path.write_bytes(b"whole")))
    assert seen[0].parent == tmp_path
    assert seen[0].suffix == ".png"
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_png_says_how_it_was_made():
    pictures.write_picture(Path("x.png"), Image.new("RGB", (4, 4), "red"), PROVENANCE)
    with Image.open("x.png") as picture:
        texts = picture.text
    assert texts["prompt"] == "ein Bär 🐻"
    assert (texts["seed"], texts["model"], texts["omni_version"]) == ("7", "omni/digits", __version__)
    assert (texts["output"], texts["enlarged"], texts["pipeline"]) == ("2 of 3", "4", "SomePipeline")
    request = json.loads(texts["omni_request"])
    assert (request["prompt"], request["seed"]) == ("ein Bär 🐻", 7)
    assert request["extra_args"] == {"image": "@bear.png", "strength": 0.5}


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50))
def test_any_prompt_comes_back_from_a_png(prompt):
    path = Path("any.png")
    request = OmniDiffusionRequest(prompt=prompt)
    pictures.write_picture(path, Image.new("L", (1, 1)), Provenance(request, {}, "m"))
    with Image.open(path) as picture:
        assert picture.text["prompt"] == prompt
        assert json.loads(picture.text["omni_request"])["prompt"] == prompt


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".webp"])
def test_other_pictures_say_it_in_exif(ending):
    pictures.write_picture(Path(f"x{ending}"), Image.new("RGBA", (4, 4)), PROVENANCE)
    with Image.open(f"x{ending}") as picture:
        said = json.loads(picture.getexif()[0x010E])
    assert (said["prompt"], said["omni_request"]["extra_args"]["image"]) == ("ein Bär 🐻", "@bear.png")


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_small_pictures_are_enlarged_just_enough(width, height):
    factor = pictures.enlargement((width, height), "auto")
    longer = max(width, height)
    assert (factor == 1) == (longer >= 128)
    assert longer >= 128 or longer * (factor - 1) < 256 <= longer * factor
    assert pictures.enlargement((width, height), "3") == 3


def test_arrays_become_pictures():
    picture = pictures.as_picture(np.array([[[0.0, 0.5, 1.0]], [[-1.0, 2.0, np.nan]]]))
    assert np.asarray(picture).tolist() == [[[0, 128, 255]], [[0, 255, 0]]]
    assert pictures.as_picture(np.zeros((3, 4, 1), np.uint8)).mode == "L"
    assert pictures.enlarge(picture, 5).size == (5, 10)


def _frames(count=5, size=(16, 16)):
    return [Image.new("RGB", size, (40 * number, 0, 255 - 40 * number)) for number in range(count)]


@pytest.mark.parametrize("ending", [".webp", ".gif"])
def test_videos_without_pyav(ending):
    path = Path(f"x{ending}")
    videos.write_video(path, _frames(), 10, PROVENANCE)
    with Image.open(path) as video:
        shades = [frame.convert("RGB").getpixel((8, 8))[0] for frame in ImageSequence.Iterator(video)]
        assert video.info["duration"] == 100
    assert shades == pytest.approx([0, 40, 80, 120, 160], abs=12)


def test_mp4_without_pyav_is_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert videos.default_ending() == ".webp"
    for ending in (".mp4", ".webm"):
        assert "pip install 'omni-core[video]'" in (videos.missing_package(ending) or "")
    assert videos.missing_package(".gif") is None


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_videos_with_pyav(ending):
    av = pytest.importorskip("av", reason="needs PyAV: pip install 'omni-core[video]'")
    path = Path(f"x{ending}")
    videos.write_video(path, _frames(5, (33, 31)), 12.5, PROVENANCE)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (32, 30, 12.5)
        comment = next(text for key, text in container.metadata.items() if key.lower() == "comment")
        assert json.loads(comment)["prompt"] == "ein Bär 🐻"
        shades = [frame.to_ndarray(format="rgb24")[15, 16, 0] for frame in container.decode(stream)]
    assert shades == pytest.approx([0, 40, 80, 120, 160], abs=16)


@pytest.mark.parametrize("shape", [(800,), (1, 800), (2, 800), (800, 2)])
def test_sound_comes_back(shape):
    samples = np.linspace(-1, 1, num=int(np.prod(shape)), dtype=np.float32).reshape(shape)
    sound.write_wav(Path("x.wav"), samples, 8000)
    with wave.open("x.wav") as file:
        channels = file.getnchannels()
        read = np.frombuffer(file.readframes(9999), "<i2").reshape(-1, channels)
        assert (file.getframerate(), file.getsampwidth(), file.getnframes()) == (8000, 2, 800)
    expected = samples[:, None] if samples.ndim == 1 else samples if shape[0] == 800 else samples.T
    assert np.abs(read / 32767 - expected).max() < 1e-4


def test_sound_beyond_the_scale_is_cut():
    sound.write_wav(Path("x.wav"), np.array([2.0, -2.0, np.nan]), 8000)
    with wave.open("x.wav") as file:
        assert np.frombuffer(file.readframes(9), "<i2").tolist() == [32767, -32767, 0]


def test_what_is_no_sound_is_refused():
    with pytest.raises(ValueError, match="is no sound"):
        sound.write_wav(Path("x.wav"), np.zeros((100, 100)), 8000)


def test_the_sampling_rate_is_found_in_the_pipeline():
    class Config:
        sampling_rate = 16_000

    class Vocoder:
        config = Config

    class Pipeline:
        vocoder = Vocoder
        sample_rate = None

    class Worker:
        pipeline = Pipeline

    assert sound.find_sampling_rate(Worker) == 16_000
    assert sound.rate_in_output({"audios": 1, "sampling_rate": 22_050}) == 22_050
    assert sound.rate_in_output({"sample_rate": True}) is None


def test_arrays_come_back():
    numbers = np.arange(6, dtype=np.float16).reshape(2, 3)
    tensor = torch.arange(6, dtype=torch.bfloat16)
    assert arrays.default_ending({"a": numbers}) == ".npz"
    assert arrays.default_ending({"a": numbers, "b": tensor}) == ".safetensors"
    arrays.write_arrays(Path("x.npz"), {"a": numbers, "b": tensor}, PROVENANCE)
    with np.load("x.npz") as loaded:
        assert (loaded["a"] == numbers).all()
        assert loaded["b"].tolist() == [0, 1, 2, 3, 4, 5]
        assert json.loads(str(loaded["omni"]))["prompt"] == "ein Bär 🐻"


@pytest.mark.parametrize("members", [("a",), ("a", "b")])
def test_safetensors_come_back(members):
    data = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::2], "b": torch.ones(2, dtype=torch.bfloat16)}
    path = Path("x.safetensors")
    write_atomically(path, lambda file: arrays.write_arrays(file, {name: data[name] for name in members}, PROVENANCE))
    with safe_open(path, "pt") as opened:
        assert sorted(opened.keys()) == list(members)
        assert opened.get_tensor("a").tolist() == [[0, 2], [3, 5]]
        assert opened.metadata()["prompt"] == "ein Bär 🐻"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp", "gif"])
def test_a_picture_says_as_much_of_itself_as_it_has_room_for(file_format):
    request = OmniDiffusionRequest(prompt="ж" * 15_000, negative_prompt="й" * 15_000, seed=7)
    content = pictures.encode_picture(Image.new("RGB", (8, 8)), file_format, Provenance(request, {}, "omni/digits"), 90)
    assert Image.open(io.BytesIO(content)).size == (8, 8)
    if file_format == "jpeg":
        facts = json.loads(Image.open(io.BytesIO(content)).getexif()[0x010E])
        assert facts["seed"] == "7"
        assert "omni_request" not in facts
