from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from invalid_values import invalid_requests
from omni_core import OmniDiffusionRequest
from omni_core.errors import OmniError, RequestError


@settings(max_examples=500)
@given(invalid_requests())
def test_an_invalid_request_is_an_error_of_ours(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        OmniDiffusionRequest(**fields)
    assert isinstance(caught.value, OmniError)
    assert isinstance(caught.value, ValueError)
    wrong = next(name for name in fields if name not in ("prompt", "num_inference_steps") or len(fields) == 2)
    assert any(name in str(caught.value) or repr(name) in str(caught.value) for name in [wrong, *fields])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": 3}, "Did you mean 'num_inference_steps'"),
        ({"promt": "x"}, "Did you mean 'prompt'"),
        ({"num_inference_steps": 0}, "closest valid value is 1"),
        ({"height": 100_000}, "closest valid value is 65536"),
        ({"extra_args": {"num_images_per_prompt": 2}}, "num_outputs_per_prompt"),
        ({"extra_args": {"height": 2}}, "set height="),
        ({"seed": 1.5, "height": "x"}, "2 problems"),
    ],
)
def test_messages_name_the_closest_valid(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        OmniDiffusionRequest(**fields)


def test_numbers_of_numpy_and_torch_are_taken() -> None:
    request = OmniDiffusionRequest(seed=np.int64(3), num_inference_steps=torch.tensor(4), priority=np.int8(-1))
    assert (request.seed, request.num_inference_steps, request.priority) == (3, 4, -1)
    assert type(request.seed) is type(request.num_inference_steps) is int


def test_every_request_has_an_id_and_a_seed_of_its_own() -> None:
    made = [OmniDiffusionRequest() for _ in range(100)] + [OmniDiffusionRequest(seed=None)]
    assert len({request.request_id for request in made}) == 101
    assert len({request.seed for request in made}) > 90


def test_a_request_cannot_be_changed_and_travels() -> None:
    request = OmniDiffusionRequest(prompt="a red seven", extra_args={"image": np.zeros(3)})
    with pytest.raises(ValueError, match="frozen"):
        request.prompt = "another"
    copy = pickle.loads(pickle.dumps(request))
    assert copy.request_id == request.request_id
    assert np.array_equal(copy.extra_args["image"], request.extra_args["image"])


def test_every_field_is_described() -> None:
    for name, field in OmniDiffusionRequest.model_fields.items():
        assert field.description, name
