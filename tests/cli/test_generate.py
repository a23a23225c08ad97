from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omni_core.cli import run
from omni_core.media import pictures

PAINTER = ("--model", "cli_test_models:Painter")


def files():
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_a_picture_named_after_prompt_and_seed(omni):
    result = omni("generate", "a red seven", "--seed", 3, *PAINTER)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert files() == ["a-red-seven-3.png"]
    assert "a-red-seven-3.png  256x128, enlarged 8 times from 32x16, seed 3" in result.stderr
    with Image.open("a-red-seven-3.png") as picture:
        assert picture.size == (256, 128)
        assert (picture.text["prompt"], picture.text["seed"]) == ("a red seven", "3")
        assert picture.text["model"] == "cli_test_models:Painter"


def test_several_prompts_and_pictures(omni):
    result = omni("generate", "a", "b", "--num-images", 2, "--seed", 1, "-o", "new/x.jpg", "--enlarge", 1, *PAINTER)
    assert result.exit_code == 0, result.stderr
    assert files() == ["new/x-1-1.jpg", "new/x-1-2.jpg", "new/x-2-1.jpg", "new/x-2-2.jpg"]
    with Image.open("new/x-2-2.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (32, 16))


def test_outputs_in_a_folder(omni):
    assert omni("generate", "a", "a", "--seed", 1, "-o", "new/", *PAINTER).exit_code == 0
    assert files() == ["new/a-1-2.png", "new/a-1.png"]


def test_a_named_file_is_replaced_and_others_are_not(omni):
    for _ in range(2):
        assert omni("generate", "a", "--seed", 1, "-o", "x.png", *PAINTER).exit_code == 0
        assert omni("generate", "a", "--seed", 1, *PAINTER).exit_code == 0
    assert files() == ["a-1-2.png", "a-1.png", "x.png"]


def test_a_picture_as_argument_is_named_in_the_file(omni):
    Image.new("RGB", (300, 300)).save("in.png")
    result = omni("generate", "a", "-o", "out.png", "--extra-args", "image=@in.png", *PAINTER)
    assert result.exit_code == 0, result.stderr
    with Image.open("out.png") as picture:
        assert picture.size == (300, 150)
        assert json.loads(picture.text["omni_request"])["extra_args"] == {"image": "@in.png"}


def test_json(omni):
    result = omni("generate", "a", "please fail", "--seed", 1, "--json", *PAINTER)
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    good, bad = document["requests"]
    assert (document["model"], document["error"]) == ("cli_test_models:Painter", None)
    assert (good["prompt"], good["seed"], good["finish_reason"], good["files"], good["error"]) == (
        *("a", 1, "finished"),
        *(["a-1.png"], None),
    )
    assert good["metrics"]["total_s"] > 0
    assert (bad["finish_reason"], bad["files"]) == ("error", [])
    assert "the brush broke" in bad["error"]
    assert good["request_id"] != bad["request_id"]


def test_json_of_an_error_before_anything_ran(omni):
    result = omni("generate", "a", "--json", "--model", "./nothing")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert document["requests"] == []
    assert document["error"].startswith("ModelLoadError: There is no model at ./nothing")


def test_one_request_fails_alone(omni):
    result = omni("generate", "please fail", "a", "--seed", 1, *PAINTER)
    assert result.exit_code == 1
    assert files() == ["a-1.png"]
    assert "Error: please fail: " in result.stderr
    assert "the brush broke" in result.stderr
    assert "Traceback" not in result.stderr


def test_verbose_shows_the_worker_s_traceback(omni):
    result = omni("generate", "please fail", "-v", *PAINTER)
    assert "Traceback in the worker" in result.stderr
    assert "cli_test_models.py" in result.stderr


def test_quiet(omni):
    assert omni("generate", "a", "-q", *PAINTER).stderr == ""
    assert "the brush broke" in omni("generate", "please fail", "-q", *PAINTER).stderr


def test_no_prompt_for_a_pipeline_that_takes_none(omni):
    result = omni("generate", "--model", "cli_test_models:ddpm", "--steps", 2, "--seed", 4)
    assert result.exit_code == 0, result.stderr
    assert files() == ["output-4.png"]
    assert "[1/1] (no prompt): step 1 of 2" in result.stderr


def test_video(omni, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    result = omni("generate", "a", "--seed", 1, "--model", "cli_test_models:Filmer", "--fps", 5)
    assert result.exit_code == 0, result.stderr
    assert files() == ["a-1.webp"]
    assert "264x176, enlarged 11 times from 24x16, 3 frames at 5/s" in result.stderr
    with Image.open("a-1.webp") as video:
        assert (video.n_frames, video.size) == (3, (264, 176))


def test_video_with_another_ending(omni, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    result = omni("generate", "a", "--model", "cli_test_models:Filmer", "-o", "x.png")
    assert result.exit_code == 0
    assert "Warning: A .png file cannot hold a video: writing .webp instead." in result.stderr
    assert files() == ["x.webp"]


def test_sound_at_the_pipeline_s_rate(omni):
    result = omni("generate", "a", "--model", "cli_test_models:Singer", "-o", "x.wav")
    assert result.exit_code == 0, result.stderr
    with wave.open("x.wav") as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (8000, 2, 4000)


def test_sound_at_a_rate_that_nobody_knows(omni):
    result = omni("generate", "a", "--model", "cli_test_models:Nameless", "-o", "x.wav")
    assert "44100 Hz is assumed. Set it with --sample-rate." in result.stderr
    result = omni("generate", "a", "--model", "cli_test_models:Nameless", "-o", "x.wav", "--sample-rate", 16000)
    assert "1" in result.stderr
    assert "assumed" not in result.stderr
    with wave.open("x.wav") as file:
        assert file.getframerate() == 16000


def test_arrays(omni):
    result = omni("generate", "a", "--output-type", "np", "-o", "x.npz", *PAINTER)
    assert result.exit_code == 0, result.stderr
    with np.load("x.npz") as loaded:
        assert loaded["images"].shape == (1, 16, 32, 3)


def test_an_output_without_a_format(omni):
    result = omni("generate", "a", "--model", "cli_test_models:Sculptor")
    assert result.exit_code == 1
    assert "nothing in the output can be saved: mesh" in result.stderr


def test_a_failing_encoder_leaves_nothing(omni, monkeypatch):
    def fail(path, picture, provenance):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "write_picture", fail)
    result = omni("generate", "a", "b", "--json", *PAINTER)
    assert result.exit_code == 1
    assert files() == []
    assert all("No space left on device" in one["error"] for one in json.loads(result.stdout)["requests"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "Missing PROMPT"),
        (["a", "-o", "x.foo"], "the ending tells the format"),
        (["a", "-o", "x"], "For a folder write x/"),
        (["a", "--output-type", "latent", "-o", "x.png"], "use .npz"),
        (["a", "--max-num-seqs", "0"], "max_num_seqs = 0"),
        (["a", "--steps", "0"], "num_inference_steps = 0"),
        (["a", "--steps", "many"], "'many' is not a valid integer"),
        (["a", "--dtype", "float8"], "'float8' is not one of"),
        (["a", "--extra-args", "prompt=b"], "'prompt' is a field of the request itself"),
        (["a", "--extra-args", "x=[1"], "begins like JSON"),
        (["a", "--extra-args", "x=@none.png"], "there is no such file"),
        (["a", "--extra-args", "x=1", "--extra-args", "x=2"], "sets 'x' twice"),
        (["a", "--enlarge", "0"], "whole number from 1"),
        (["a", "--sample-rate", "0"], "0 is not in the range"),
        (["a", "--config", "none.toml"], "no configuration file at none.toml"),
        (["a", "--bogus"], "No such option"),
        (["\udcff"], "no text in UTF-8"),
    ],
)
def test_what_is_wrong_is_refused_before_a_model_is_loaded(omni, monkeypatch, flags, says):
    monkeypatch.setattr(run, "DiffusionEngine", None)
    result = omni("generate", *flags)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--extra-args", "bogus=1", *PAINTER], 2, "Painter takes no 'bogus'"),
        (["--executor-options", "x=1", *PAINTER], 2, "takes no options"),
        (["--model", "no.such:thing"], 3, "cannot be imported"),
        (["--executor-class", "nonsense"], 3, "There is no executor 'nonsense'"),
        (["--executor-class", "cli_test_models:NoStart"], 3, "no electricity"),
        (["--executor-class", "cli_test_models:Dying"], 3, "the workers are gone"),
    ],
)
def test_exit_codes_of_the_engine(omni, flags, code, says):
    result = omni("generate", "a", *flags)
    assert result.exit_code == code, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert files() == []
