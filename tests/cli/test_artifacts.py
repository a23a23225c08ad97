from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from omni_core.media.artifacts import artifacts_of

PICTURE = Image.new("RGB", (4, 3))


def kinds(output, output_type=None, ending=None):
    found, left_out = artifacts_of(output, output_type, ending)
    return [artifact.kind for artifact in found], left_out


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({"images": [PICTURE, PICTURE], "nsfw_content_detected": [False, False]}, ["picture", "picture"]),
        ({"images": np.zeros((2, 3, 4, 3))}, ["picture", "picture"]),
        ({"images": torch.zeros(1, 3, 4, 4)}, ["picture"]),
        ({"images": [[PICTURE, PICTURE]]}, ["video"]),  # Shap-E
        ({"frames": [[PICTURE, PICTURE], [PICTURE]]}, ["video", "video"]),
        ({"frames": [PICTURE, PICTURE]}, ["video"]),
        ({"frames": np.zeros((2, 5, 4, 4, 3))}, ["video", "video"]),
        ({"frames": np.zeros((5, 4, 4, 3))}, ["video"]),
        ({"frames": torch.zeros(1, 5, 3, 8, 8)}, ["video"]),
        ({"frames": [np.zeros((5, 4, 4, 3))]}, ["video"]),
        ({"audios": np.zeros((2, 100))}, ["audio", "audio"]),
        ({"audios": np.zeros((1, 2, 100))}, ["audio"]),
        ({"audios": torch.zeros(1, 2, 100)}, ["audio"]),
        ({"audios": np.zeros(100)}, ["audio"]),
        ({"frames": np.zeros((1, 5, 4, 4, 3)), "audio": torch.zeros(1, 2, 100)}, ["video", "audio"]),  # LTX-2
        ({"image_embeds": torch.zeros(1, 8), "negative_image_embeds": torch.zeros(1, 8)}, ["arrays"]),
        ({"prediction": np.zeros((1, 4, 4, 1)), "uncertainty": None}, ["arrays"]),
        ({"images": np.zeros((1, 4, 4, 7))}, ["arrays"]),
        ({"output": PICTURE}, ["picture"]),
    ],
)
def test_what_it_is(output, expected):
    assert kinds(output) == (expected, [])


@pytest.mark.parametrize("output_type", ["np", "pt", "latent"])
def test_arrays_that_were_asked_for_stay_arrays(output_type):
    assert kinds({"images": np.zeros((1, 4, 4, 3))}, output_type) == (["arrays"], [])
    assert kinds({"images": np.zeros((1, 4, 4, 3))}, output_type, ".npz") == (["arrays"], [])


def test_the_ending_decides():
    assert kinds({"images": np.zeros((1, 4, 4, 3))}, "np", ".png") == (["picture"], [])
    assert kinds({"images": np.zeros((1, 4, 4, 3))}, None, ".npz") == (["arrays"], [])


def test_a_batch_of_tensors_turns_channels_last():
    [artifact], _ = artifacts_of({"frames": torch.arange(120).reshape(1, 2, 3, 4, 5)}, None)
    assert [frame.shape for frame in artifact.data] == [(4, 5, 3), (4, 5, 3)]
    assert artifact.data[1][0, 1].tolist() == [61, 81, 101]


def test_what_has_no_format_is_named():
    assert kinds({"mesh": object(), "images": [PICTURE]}) == (["picture"], ["mesh"])
