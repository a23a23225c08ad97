"""Requests and configurations that are wrong in one field, for hypothesis to draw."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st

from omni_core import OmniDiffusionConfig, OmniDiffusionRequest

REQUEST_COUNT = st.one_of(
    st.integers(max_value=0), st.booleans(), st.text(), st.floats(), st.lists(st.integers()), st.binary()
)
REQUEST_TEXT = st.one_of(st.integers(), st.booleans(), st.binary(), st.lists(st.text()))
WRONG_REQUEST_VALUES = {
    "prompt": REQUEST_TEXT,
    "negative_prompt": REQUEST_TEXT,
    "height": REQUEST_COUNT | st.integers(min_value=65537),
    "width": REQUEST_COUNT | st.integers(min_value=65537),
    "num_inference_steps": REQUEST_COUNT | st.integers(min_value=100_001),
    "guidance_scale": st.sampled_from([math.nan, math.inf, -math.inf, True, "4", [4.0]]),
    "num_outputs_per_prompt": REQUEST_COUNT | st.none() | st.integers(min_value=1025),
    "seed": st.integers(max_value=-1) | st.integers(min_value=2**63) | st.booleans() | st.floats() | st.text(),
    "output_type": REQUEST_TEXT | st.just(""),
    "preview_every": REQUEST_COUNT,
    "priority": st.none() | st.booleans() | st.floats() | st.text(),
    "timeout_s": st.floats(max_value=0) | st.sampled_from([math.nan, math.inf, True, "1"]),
    "request_id": st.sampled_from(["", "a b", "a/b", "x" * 129, None, 3, "a\n"]),
    "extra_args": st.sampled_from([None, 3, [], {"prompt": "x"}, {"generator": 1}, {"return_dict": False}])
    | st.dictionaries(st.sampled_from(["a b", "", "1x", "num_images_per_prompt", "seed"]), st.none(), min_size=1)
    | st.dictionaries(st.integers(), st.none(), min_size=1),
}


@st.composite
def invalid_requests(draw: st.DrawFn) -> dict[str, Any]:
    """A good request with one field that is wrong, or one that does not exist."""
    fields: dict[str, Any] = {"prompt": "a red seven", "num_inference_steps": 2}
    if draw(st.integers(0, 9)) == 0:
        name = draw(st.text(min_size=1).filter(lambda name: name not in OmniDiffusionRequest.model_fields))
        return {**fields, name: None}
    name = draw(st.sampled_from(sorted(WRONG_REQUEST_VALUES)))
    return {**fields, name: draw(WRONG_REQUEST_VALUES[name])}


CONFIG_COUNT = st.one_of(
    st.none(), st.integers(max_value=0), st.booleans(), st.sampled_from(["x", "", "1.5", "-1"]), st.lists(st.integers())
)
CONFIG_SECONDS = st.sampled_from([0, -1.0, math.nan, math.inf, True, "soon", []])
CONFIG_TABLE = st.sampled_from([3, "x", [1], True])
CONFIG_TEXT = st.one_of(st.integers(), st.booleans(), st.just(""), st.lists(st.text()))
WRONG_CONFIG_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "model": CONFIG_TEXT,
    "model_options": CONFIG_TABLE,
    "executor_class": st.sampled_from([None, 3, "", [], {}]),
    "executor_options": CONFIG_TABLE,
    "device": CONFIG_TEXT | st.none(),
    "dtype": st.sampled_from(["float31", "int8", None, 16, "", torch.int8]),
    "max_num_seqs": CONFIG_COUNT | st.integers(min_value=4097),
    "data_parallel_size": CONFIG_COUNT,
    "cfg_parallel_size": CONFIG_COUNT,
    "ulysses_degree": CONFIG_COUNT,
    "ring_degree": CONFIG_COUNT,
    "tensor_parallel_size": CONFIG_COUNT,
    "max_retries": st.sampled_from([-1, 101, 1.5, True, "x", None]),
    "step_timeout_s": CONFIG_SECONDS,
    "startup_timeout_s": CONFIG_SECONDS | st.none(),
    "compile": st.sampled_from([None, "x", [1], 7]),
    "cache": st.sampled_from([3, [1], True]),
    "stacking": st.sampled_from(["always", "", None, True]),
    "max_batch_wait_ms": st.sampled_from([-1, 1e9, math.nan, True, "soon", None]),
    "max_waiting": st.integers(max_value=0) | st.booleans(),
    "max_prompt_length": st.integers(max_value=0) | st.booleans(),
    "max_pixels": st.integers(max_value=0) | st.booleans(),
    "max_steps": st.integers(max_value=0) | st.booleans(),
    "max_argument_bytes": st.integers(max_value=0) | st.booleans(),
    "offload": st.sampled_from(["disk", "", None, True, "Model"]),
    "attention_backend": st.sampled_from([3, [1], True]),
    "trust_remote_code": st.sampled_from([None, "perhaps", 3, []]),
    "request_defaults": CONFIG_TABLE,
    "worker_extension_cls": st.sampled_from([3, [1], True]),
    "num_threads": st.integers(max_value=0) | st.booleans(),
    "log_level": st.sampled_from(["loud", "", None, 3]),
    "log_format": st.sampled_from(["xml", "", None, 3]),
}


@st.composite
def invalid_configurations(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    if draw(st.integers(0, 9)) == 0:
        name = draw(st.text(min_size=1).filter(lambda name: name not in OmniDiffusionConfig.model_fields))
        return name, {name: draw(st.integers())}
    name = draw(st.sampled_from(sorted(WRONG_CONFIG_VALUES)))
    return name, {name: draw(WRONG_CONFIG_VALUES[name])}
