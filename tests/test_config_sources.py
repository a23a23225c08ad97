"""The same value is the same configuration, wherever it was written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_core import OmniDiffusionConfig
from omni_core.cli.checks.configuration import check_environment
from omni_core.cli.config import command
from omni_core.cli.options import config_from
from omni_core.config import unknown_environment
from omni_core.errors import ConfigError

SERVICE = {
    "{}_SERVICE_HOST": "10.0.0.1",
    "{}_SERVICE_PORT": "80",
    "{}_SERVICE_PORT_HTTP": "80",
    "{}_PORT": "tcp://10.0.0.1:80",
    "{}_PORT_80_TCP": "tcp://10.0.0.1:80",
    "{}_PORT_80_TCP_PROTO": "tcp",
    "{}_PORT_80_TCP_PORT": "80",
    "{}_PORT_80_TCP_ADDR": "10.0.0.1",
    "{}_PORT_53_UDP": "udp://[fd00::1]:53",
    "{}_PORT_53_UDP_ADDR": "fd00::1",
}


def configured(environment: Mapping[str, str], **values: Any) -> OmniDiffusionConfig:
    with mock.patch.dict(os.environ, environment):
        return OmniDiffusionConfig(**values)


# --- entries of tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "field", "value"),
    [
        ({"OMNI_REQUEST_DEFAULTS__NUM_INFERENCE_STEPS": "5"}, "request_defaults", {"num_inference_steps": 5}),
        ({"OMNI_REQUEST_DEFAULTS__STRENGTH": "0.5"}, "request_defaults", {"strength": 0.5}),
        ({"OMNI_REQUEST_DEFAULTS__PROMPT": "a red 7"}, "request_defaults", {"prompt": "a red 7"}),
        ({"OMNI_COMPILE__FULLGRAPH": "false"}, "compile", {"fullgraph": False}),
        ({"OMNI_COMPILE__FULLGRAPH": "False", "OMNI_COMPILE__MODE": "x"}, "compile", {"fullgraph": False, "mode": "x"}),
        ({"OMNI_COMPILE": "false"}, "compile", False),
        ({"OMNI_COMPILE": "yes"}, "compile", True),
        ({"OMNI_COMPILE": '{"fullgraph": true}'}, "compile", {"fullgraph": True}),
        ({"OMNI_CACHE": "First"}, "cache", "First"),
        ({"OMNI_CACHE": "123"}, "cache", "123"),
        ({"OMNI_CACHE__NAME": "First", "OMNI_CACHE__THRESHOLD": "0.1"}, "cache", {"name": "First", "threshold": 0.1}),
        ({"OMNI_EXECUTOR_OPTIONS__A__B__C": "[1, 2]"}, "executor_options", {"a": {"b": {"c": [1, 2]}}}),
        ({"OMNI_EXECUTOR_OPTIONS__A": "null"}, "executor_options", {"a": None}),
        ({"OMNI_EXECUTOR_OPTIONS__A": '"5"'}, "executor_options", {"a": "5"}),
        ({"OMNI_EXECUTOR_OPTIONS__A": ""}, "executor_options", {}),
        ({"OMNI_EXECUTOR_OPTIONS": '{"a": {"x": 1}, "b": 2}', "OMNI_EXECUTOR_OPTIONS__A__Y": "2"}, "executor_options",
         {"a": {"x": 1, "y": 2}, "b": 2}),
        ({"OMNI_EXECUTOR_OPTIONS__A": '{"x": 1}', "OMNI_EXECUTOR_OPTIONS__A__Y": "2"}, "executor_options",
         {"a": {"x": 1, "y": 2}}),
        ({"OMNI_EXECUTOR_OPTIONS": '{"a": 1}', "OMNI_EXECUTOR_OPTIONS__A": "2"}, "executor_options", {"a": 2}),
        ({"OMNI_MAX_NUM_SEQS": " 3 \n"}, "max_num_seqs", 3),
        ({"OMNI_DTYPE": "float16\n"}, "dtype", "float16"),
        ({"OMNI_DTYPE": " "}, "dtype", "auto"),
        ({"omni_dtype": "float16"}, "dtype", "float16"),
        ({"omni_dtype": "float16", "OMNI_DTYPE": "float16"}, "dtype", "float16"),
    ],
)  # fmt: skip
def test_what_variables_mean(environment: dict[str, str], field: str, value: Any) -> None:
    found = getattr(configured(environment), field)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OMNI_EXECUTOR_OPTIONS": "5"}, "executor_options: .*no table: write JSON"),
        ({"OMNI_EXECUTOR_OPTIONS": "x"}, "no table"),
        ({"OMNI_EXECUTOR_OPTIONS__A": "[1"}, "begins like JSON"),
        ({"OMNI_EXECUTOR_OPTIONS__A": "5", "OMNI_EXECUTOR_OPTIONS__A__B": "6"}, "'a' is a value in one of them"),
        ({"OMNI_EXECUTOR_OPTIONS": '{"a": 5}', "OMNI_EXECUTOR_OPTIONS__A__B": "6"}, "'a' is a value in one of them"),
        ({"OMNI_EXECUTOR_OPTIONS__": "5"}, "names no entry"),
        ({"OMNI_EXECUTOR_OPTIONS____A": "5"}, "names no entry"),
        ({"OMNI_COMPILE": "true", "OMNI_COMPILE__MODE": "x"}, "exclude each other"),
        ({"OMNI_CACHE": "First", "OMNI_CACHE__THRESHOLD": "1"}, "exclude each other"),
        ({"OMNI_MODEL__X": "1"}, "model: .*one value, not a table"),
        ({"OMNI_REQUEST_DEFAULT__STRENGTH": "5"}, "Did you mean OMNI_REQUEST_DEFAULTS__STRENGTH"),
        ({"OMNI_REQUEST_DEFAULTS_STRENGTH": "5"}, "Did you mean OMNI_REQUEST_DEFAULTS__STRENGTH"),
        ({"omni_max_num_seq": "5"}, "omni_max_num_seq .*Did you mean OMNI_MAX_NUM_SEQS"),
        ({"omni_dtype": "float16", "OMNI_DTYPE": "bfloat16"}, "with two values"),
    ],
)  # fmt: skip
def test_what_variables_cannot_mean(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configured(environment)


# --- other people's variables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["OMNI", "OMNI_MODEL", "OMNI_DEVICE", "OMNI_REQUEST_DEFAULTS", "OMNI_MAX_NUM_SEQ"])
def test_variables_of_a_kubernetes_service_are_passed_over(service: str) -> None:
    environment = {name.format(service): value for name, value in SERVICE.items()}
    assert unknown_environment(environment) == []
    assert configured(environment) == OmniDiffusionConfig()
    with mock.patch.dict(os.environ, environment):
        assert list(check_environment()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OMNI_MODEL_PORT", "a/model"),
        ("OMNI_MODEL_PATH", "tcp://10.0.0.1:80"),
        ("OMNI_MODEL_SERVICE", "10.0.0.1"),
        ("OMNI_DEVICES", "80"),
    ],
)
def test_a_misspelt_variable_is_not_taken_for_one_of_a_service(name: str, value: str) -> None:
    assert unknown_environment({name: value}) == [name]
    with pytest.raises(ConfigError, match=name):
        configured({name: value})


def test_an_empty_variable_counts_as_not_set() -> None:
    configured({"OMNI_MAX_NUM_SEQ": "", "OMNI_MODEL": "", "OMNI_COMPILE__MODE": ""})


# --- one value, four ways -----------------------------------------------------------------------------------------

WORD = st.from_regex(r"[A-Za-z][A-Za-z0-9./:_-]{0,12}", fullmatch=True)
NAME = st.from_regex(r"[a-z]{1,6}(_[a-z]{1,5})?", fullmatch=True).filter(lambda name: name not in ("true", "false"))
SMALL_FLOAT = st.floats(1e-3, 1e6, allow_nan=False)
LEAF = (
    st.booleans()
    | st.integers(-(2**40), 2**40)
    | SMALL_FLOAT
    | WORD
    | st.sampled_from(["5", "true", "null", "[x", "é ü"])
)
TREE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3), max_leaves=6
)
TABLE = st.dictionaries(NAME, TREE, min_size=1, max_size=4)
COUNT = st.integers(1, 4096)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "model": WORD | st.just("7"),
    "model_options": TABLE,
    "executor_class": WORD,
    "executor_options": TABLE,
    "device": WORD,
    "dtype": st.sampled_from(["auto", "float32", "float16", "bfloat16"]),
    "max_num_seqs": COUNT,
    "data_parallel_size": COUNT,
    "cfg_parallel_size": COUNT,
    "ulysses_degree": COUNT,
    "ring_degree": COUNT,
    "tensor_parallel_size": COUNT,
    "max_retries": st.integers(0, 100),
    "step_timeout_s": SMALL_FLOAT,
    "startup_timeout_s": SMALL_FLOAT,
    "compile": st.booleans() | TABLE,
    "cache": WORD | st.just("7") | TABLE,
    "stacking": st.sampled_from(["verified", "trusted", "off"]),
    "max_batch_wait_ms": st.floats(0, 60_000),
    "max_waiting": COUNT,
    "max_prompt_length": COUNT,
    "max_pixels": COUNT,
    "max_steps": COUNT,
    "max_argument_bytes": COUNT,
    "offload": st.sampled_from(["none", "model", "sequential", "group"]),
    "attention_backend": WORD | st.just("7"),
    "trust_remote_code": st.booleans(),
    "request_defaults": TABLE,
    "worker_extension_cls": WORD,
    "num_threads": COUNT,
    "log_level": st.sampled_from(["debug", "info", "warning", "error"]),
    "log_format": st.sampled_from(["auto", "console", "json"]),
}


def as_text(value: Any) -> str:
    """As in a flag or a variable: what is no text is JSON, and text that JSON would read is quoted."""
    if not isinstance(value, str):
        return json.dumps(value)
    return json.dumps(value) if value in ("5", "true", "null", "[x") else value


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def by_environment(field: str, value: Any, *, entries: bool) -> OmniDiffusionConfig:
    variable = f"OMNI_{field.upper()}"
    if isinstance(value, dict) and entries:
        return configured({f"{variable}__{key.upper()}": as_text(item) for key, item in value.items()})
    return configured({variable: json.dumps(value) if not isinstance(value, str) else value})


def by_flag(field: str, value: Any) -> OmniDiffusionConfig:
    flag = f"--{field.replace('_', '-')}"
    if isinstance(value, dict):
        flag += "-options" if field in ("compile", "cache") else ""
        arguments = [part for key, item in value.items() for part in (flag, f"{key}={as_text(item)}")]
    elif isinstance(value, bool):
        arguments = [flag if value else flag.replace("--", "--no-", 1)]
    else:
        arguments = [flag, str(value)]
    with command.make_context("config", arguments) as context:
        return config_from(command, context.params)


def by_file(field: str, value: Any) -> OmniDiffusionConfig:
    Path("other.toml").write_text(f"{field} = {as_toml(value)}\n", encoding="utf-8")
    return OmniDiffusionConfig.from_file("other.toml")


def test_every_field_is_tried() -> None:
    assert set(VALUES) == set(OmniDiffusionConfig.model_fields)


@pytest.mark.parametrize("field", VALUES)
@settings(max_examples=30)
@given(data=st.data())
def test_a_value_means_the_same_wherever_it_is_written(field: str, data: st.DataObject) -> None:
    value = data.draw(VALUES[field])
    assert not isinstance(value, float) or math.isfinite(value)
    wanted = OmniDiffusionConfig(**{field: value}).model_dump()
    assert wanted[field] == value
    assert by_environment(field, value, entries=False).model_dump() == wanted
    assert by_environment(field, value, entries=True).model_dump() == wanted
    assert by_flag(field, value).model_dump() == wanted
    assert by_file(field, value).model_dump() == wanted
