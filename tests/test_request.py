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
        (
            {"prompt": ["a", "b"]},
            r"prompt: .*one request for each: engine\.step\(\[OmniDiffusionRequest\(prompt=prompt\)",
        ),
        ({"prompt": ("a",)}, "one request for each"),
        ({"prompt": np.array(["a", "b"])}, "one request for each"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt: .*one request for each"),
        ({"seed": -1}, "seed: -1 cannot be a seed.* For a random one, leave seed out"),
        ({"seed": np.int64(-1)}, "leave seed out"),
        ({"seed": torch.tensor(-1)}, "leave seed out"),
        ({"height": 10**400}, "closest valid value is 65536"),
        ({"seed": 2**63}, f"closest valid value is {2**63 - 1}"),
        ({"seed": 1.5}, "closest valid value is 2"),
        ({"seed": "7"}, "closest valid value is 7"),
        ({"num_inference_steps": -3}, "closest valid value is 1"),
        ({"num_inference_steps": 0.4}, "closest valid value is 1"),
        ({"num_inference_steps": "20"}, "closest valid value is 20"),
        ({"num_inference_steps": 20.0}, "closest valid value is 20"),
        ({"num_inference_steps": True}, "not a truth value. The closest valid value is 1"),
        ({"num_inference_steps": np.True_}, "not a truth value"),
        ({"num_inference_steps": torch.tensor(True)}, "not a truth value"),
        ({"num_inference_steps": torch.tensor([1, 2])}, "valid integer"),
        ({"width": 10**9}, "closest valid value is 65536"),
        ({"height": 512.5}, "closest valid value is 512"),
        ({"guidance_scale": "7.5"}, "closest valid value is 7.5"),
        ({"guidance_scale": "high"}, "valid number"),
        ({"guidance_scale": np.array([1.0, 2.0])}, "valid number"),
        ({"guidance_scale": torch.tensor(True)}, "not a truth value"),
        ({"num_outputs_per_prompt": 0}, "closest valid value is 1"),
        ({"num_outputs_per_prompt": 5000}, "closest valid value is 1024"),
        ({"timeout_s": 0}, "greater than 0"),
    ],
)
def test_messages_name_the_closest_valid(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        OmniDiffusionRequest(**fields)


def test_numbers_of_numpy_and_torch_are_taken() -> None:
    request = OmniDiffusionRequest(seed=np.int64(3), num_inference_steps=torch.tensor(4), priority=np.int8(-1))
    assert (request.seed, request.num_inference_steps, request.priority) == (3, 4, -1)
    assert type(request.seed) is type(request.num_inference_steps) is int


@pytest.mark.parametrize(
    "scale", [7, 7.0, np.float32(7), np.float16(7), np.int8(7), torch.tensor(7.0), torch.tensor([7])]
)
def test_scalars_are_plain_numbers_in_a_request(scale: Any) -> None:
    request = OmniDiffusionRequest(guidance_scale=scale, timeout_s=scale)
    assert request.guidance_scale == request.timeout_s == 7
    assert type(request.guidance_scale) is type(request.timeout_s) is float


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "output_type"])
@pytest.mark.parametrize("text", ["\ud800", "a \udfff b", "é\udc80"])
def test_what_is_no_text_is_refused(field: str, text: str) -> None:
    with pytest.raises(RequestError, match="half of a surrogate pair") as caught:
        OmniDiffusionRequest(**{field: text})
    caught.value.message.encode()


def test_any_text_is_taken() -> None:
    assert OmniDiffusionRequest(prompt="🎨 \x00 é").prompt == "🎨 \x00 é"


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
