from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from omni_core import OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.errors import RequestError
from omni_core.request import PASSED_BY_NAME
from omni_core.request_limits import check_size, size_of

LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "max_prompt_length": ({"prompt": "x" * 20_000}, {"prompt": "x" * 20_001}),
    "max_pixels": (
        {"height": 10_000, "width": 1_000, "num_outputs_per_prompt": 10},
        {"height": 10_000, "width": 1_000, "num_outputs_per_prompt": 11},
    ),
    "max_steps": ({"num_inference_steps": 100_000}, {}),
    "max_argument_bytes": ({"extra_args": {"image": np.zeros(1000)}}, {}),
}


def check(config: OmniDiffusionConfig, **fields: Any) -> None:
    request = OmniDiffusionRequest(request_id="r", **fields)
    arguments = {name: getattr(request, name) for name in PASSED_BY_NAME} | request.extra_args
    check_size(request, config, arguments)


@pytest.mark.parametrize("limit", LIMITS)
def test_what_is_at_a_limit_passes_and_what_is_above_is_refused(limit: str) -> None:
    within, beyond = LIMITS[limit]
    check(OmniDiffusionConfig(), **within)
    tight = {"max_steps": 99_999, "max_argument_bytes": 7_999}
    config = OmniDiffusionConfig(**({} if beyond else {limit: tight[limit]}))
    with pytest.raises(RequestError, match=rf"'r' is too large: .*{limit} = .* raise {limit}"):
        check(config, **(beyond or within))
    check(OmniDiffusionConfig(**{limit: None}), **(beyond or within))


def test_texts_among_the_arguments_have_the_limit_of_prompts() -> None:
    with pytest.raises(RequestError, match="prompt_2 has 30000 characters"):
        check(OmniDiffusionConfig(), extra_args={"prompt_2": "x" * 30_000})


@pytest.mark.parametrize(
    "fields",
    [
        {"num_outputs_per_prompt": 1024},
        {"height": 65536, "num_outputs_per_prompt": 4},
        {"extra_args": {"prompt_2": ["short", "x" * 30_000]}},
        {"extra_args": {"num_frames": 4000}},
        {"height": 16, "width": 16, "extra_args": {"num_frames": 10**9}},
        {"extra_args": {"video_length": 10**400}},
        {"extra_args": {"max_sequence_length": 10**9}},
        {"extra_args": {"num_frames": np.int64(10**9)}},
        {"extra_args": {"num_frames": 1e8}},
        {"extra_args": {"image": [*range(1_000_001), bytes(8)]}},
    ],
)
def test_a_side_or_a_place_that_is_not_the_usual_one_is_no_way_round(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="too large"):
        check(OmniDiffusionConfig(), **fields)


def test_videos_of_the_usual_length_pass() -> None:
    for height, width, frames in ((720, 1280, 129), (1088, 1920, 241), (512, 512, 3814)):
        check(OmniDiffusionConfig(), height=height, width=width, extra_args={"num_frames": frames})


def test_sizes() -> None:
    picture = Image.new("RGB", (10, 20))
    assert size_of({"a": picture, "b": [np.zeros(5, np.float32), b"xy"], "c": "abc"}, 10**9) == 600 + 20 + 2 + 3 + 3
    assert size_of([picture, picture], 10**9) == 600, "each is counted once"
    holding_itself: list[Any] = [b"xyz"]
    holding_itself.append(holding_itself)
    assert size_of(holding_itself, 10**9) == 3


def test_measuring_runs_no_code_that_could_fail_or_not_end() -> None:
    from omni_core.testing.odd_values import ODD_VALUES

    for name, make in ODD_VALUES.items():
        assert size_of({"x": make()}, 10**7) >= 0, name


def test_what_the_pipeline_has_by_default_is_not_the_requests_to_ask_less_of() -> None:
    request = OmniDiffusionRequest(prompt="hi", request_id="r")
    check_size(request, OmniDiffusionConfig(max_prompt_length=300), {"prompt": "hi", "max_sequence_length": 512})
