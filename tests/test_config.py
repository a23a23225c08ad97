from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from invalid_values import WRONG_CONFIG_VALUES, invalid_configurations
from omni_core import OmniDiffusionConfig, serialization
from omni_core.config import unknown_environment
from omni_core.errors import ConfigError


def test_every_field_has_wrong_values_to_draw_from() -> None:
    assert set(WRONG_CONFIG_VALUES) == set(OmniDiffusionConfig.model_fields)


@settings(max_examples=500)
@given(invalid_configurations())
def test_an_invalid_configuration_is_an_error_of_ours(drawn: tuple[str, dict[str, Any]]) -> None:
    name, values = drawn
    with pytest.raises(ConfigError) as caught:
        OmniDiffusionConfig(**values)
    assert name in str(caught.value) or repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_num_seq": 3}, "Did you mean 'max_num_seqs'"),
        ({"dtype": "bfloat"}, "Did you mean 'bfloat16'"),
        ({"max_num_seqs": 0}, "closest valid value is 1"),
        ({"max_num_seqs": 10**6}, "closest valid value is 4096"),
        ({"max_num_seqs": 2.6}, "closest valid value is 3"),
        ({"max_num_seqs": True}, "closest valid value is 1"),
        ({"max_retries": -1}, "closest valid value is 0"),
        ({"max_batch_wait_ms": 1e9}, "closest valid value is 60000"),
        ({"dtype": "fp16"}, "Did you mean 'float16'"),
        ({"dtype": "FP16"}, "Did you mean 'float16'"),
        ({"dtype": "half"}, "Did you mean 'float16'"),
        ({"dtype": "torch.float16"}, "Did you mean 'float16'"),
        ({"dtype": "bf16"}, "Did you mean 'bfloat16'"),
        ({"dtype": "fp32"}, "Did you mean 'float32'"),
        ({"dtype": torch.float64}, "Did you mean 'float"),
        ({"dtype": np.float16}, "Did you mean 'float16'"),
        ({"dtype": np.dtype("float16")}, "Did you mean 'float16'"),
        ({"request_defaults": {"num_inference_steps": 0}}, "request_defaults: num_inference_steps = 0.*value is 1"),
        ({"request_defaults": {"height": -8}}, "request_defaults: height = -8.*closest valid value is 1"),
        ({"request_defaults": {"guidance_scale": "7.5"}}, "closest valid value is 7.5"),
        ({"request_defaults": {"seed": 3}}, "'seed' can have no default"),
        ({"request_defaults": {"generator": 3}}, "'seed'"),
        ({"request_defaults": {"priority": 3}}, "'priority' can have no default"),
        ({"request_defaults": {"num_images_per_prompt": 3}}, "'num_outputs_per_prompt'"),
        ({"request_defaults": {"return_dict": False}}, "always on"),
        ({"request_defaults": {"a b": False}}, "not the name of an argument"),
        ({"offload": "modle"}, "Did you mean 'model'"),
        ({"executor_class": 3}, "registered name"),
    ],
)
def test_messages_name_the_closest_valid(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OmniDiffusionConfig(**values)


def test_sources_and_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("omni.toml").write_text("max_num_seqs = 2\ndtype = 'float16'\nmax_retries = 7\n[executor_options]\na = 1\n")
    monkeypatch.setenv("OMNI_DTYPE", "bfloat16")
    monkeypatch.setenv("OMNI_MAX_NUM_SEQS", "3")
    monkeypatch.setenv("OMNI_EXECUTOR_OPTIONS__B", "2")
    config = OmniDiffusionConfig(max_num_seqs=4)
    assert (config.max_num_seqs, config.dtype, config.max_retries, config.device) == (4, "bfloat16", 7, "auto")
    assert config.executor_options == {"a": 1, "b": 2}
    sources = config.sources()
    assert sources["max_num_seqs"] == "argument"
    assert sources["dtype"] == "environment OMNI_DTYPE"
    assert sources["max_retries"] == "file omni.toml"
    assert sources["device"] == "default"
    assert set(sources) == set(OmniDiffusionConfig.model_fields)


def test_a_file_that_cannot_be_read_is_told_and_not_passed_over(tmp_path: Path) -> None:
    Path("omni.toml").mkdir()
    with pytest.raises(ConfigError, match=r"omni\.toml cannot be read: it is a folder"):
        OmniDiffusionConfig()
    Path("omni.toml").rmdir()
    Path("omni.toml").symlink_to(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match=r"omni\.toml cannot be read: it is a link to no file"):
        OmniDiffusionConfig()
    Path("omni.toml").unlink()
    Path("omni.toml").write_text("max_num_seqs = 2\nmax_num_seqs = 3\n")
    with pytest.raises(ConfigError, match=r"at line 2.*: max_num_seqs = 3"):
        OmniDiffusionConfig()


def test_a_file_of_an_editor_of_windows(tmp_path: Path) -> None:
    Path("omni.toml").write_bytes(b"\xef\xbb\xbfmax_num_seqs = 3\r\n")
    assert OmniDiffusionConfig().max_num_seqs == 3


def test_another_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("max_num_seqs = 5")
    config = OmniDiffusionConfig.from_file(file, dtype="float32")
    assert (config.max_num_seqs, config.dtype) == (5, "float32")
    assert config.sources()["max_num_seqs"] == f"file {file}"
    with pytest.raises(ConfigError, match="no configuration file"):
        OmniDiffusionConfig.from_file(tmp_path / "missing.toml")
    for text, words in [("max_num_seqs = ", "cannot be read"), ("max_num_seq = 3", "Did you mean 'max_num_seqs'")]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            OmniDiffusionConfig.from_file(file)


def test_the_environment_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_KIT_ALLOW_ROOT", "1")  # NVIDIA Omniverse's
    assert unknown_environment() == ["OMNI_KIT_ALLOW_ROOT"]
    OmniDiffusionConfig()
    for name, value, words in [
        ("OMNI_MAX_NUM_SEQ", "3", "Did you mean OMNI_MAX_NUM_SEQS"),
        ("OMNI_EXECUTOR_OPTIONS", "{", "executor_options"),
        ("OMNI_DTYPE", "float31", "Did you mean 'float32'"),
    ]:
        with monkeypatch.context() as patch, pytest.raises(ConfigError, match=words):
            patch.setenv(name, value)
            OmniDiffusionConfig()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["max_num_seqs", "max_retries"]), st.integers(1, 100))
def test_the_environment_says_the_same_as_an_argument(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(f"OMNI_{name.upper()}", str(value))
        assert getattr(OmniDiffusionConfig(), name) == getattr(OmniDiffusionConfig(**{name: value}), name) == value


def test_replace_keeps_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_DTYPE", "float16")
    config = OmniDiffusionConfig().replace(max_num_seqs=3)
    assert (config.dtype, config.max_num_seqs) == ("float16", 3)
    assert config.sources()["dtype"] == "environment OMNI_DTYPE"
    assert config.sources()["max_num_seqs"] == "argument"
    with pytest.raises(ConfigError):
        config.replace(max_num_seqs=0)


COPIES: dict[str, Callable[[OmniDiffusionConfig], OmniDiffusionConfig]] = {
    "replace": lambda config: config.replace(),
    "model_copy": lambda config: config.model_copy(),
    "deep model_copy": lambda config: config.model_copy(deep=True),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),
    "omni_core.serialization": lambda config: serialization.loads(*serialization.dumps(config)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_depends_on_nothing_but_the_original(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("good.toml").write_text("max_num_seqs = 3\n[executor_options]\na = 1\n")
    monkeypatch.setenv("OMNI_DTYPE", "float16")
    config = OmniDiffusionConfig.from_file("good.toml", cache={"name": "x", "threshold": 1})
    Path("good.toml").write_text("max_num_seqs = 4\nmax_retries = 5\n[executor_options]\nb = 1\n")
    Path("omni.toml").write_text("this is = = no TOML")
    monkeypatch.setenv("OMNI_DTYPE", "bfloat16")
    monkeypatch.setenv("OMNI_MAX_RETRIES", "many")
    monkeypatch.setenv("OMNI_CACHE__THRESHOLD", "2")
    monkeypatch.setenv("OMNI_MAX_NUM_SEQ", "3")
    copied = COPIES[how](config)
    assert type(copied) is OmniDiffusionConfig
    assert copied == config
    assert (copied.max_num_seqs, copied.max_retries, copied.dtype) == (3, 2, "float16")
    assert copied.executor_options == {"a": 1}
    assert copied.cache == {"name": "x", "threshold": 1}
    assert copied.sources() == config.sources()
    assert copied.sources()["max_num_seqs"] == "file good.toml"
    assert copied.sources()["dtype"] == "environment OMNI_DTYPE"


@pytest.mark.parametrize("change", ["replace", "model_copy", "__replace__"])
def test_a_copy_with_changes_is_validated(change: str) -> None:
    Path("omni.toml").write_text("max_num_seqs = 'many'")

    def changed(config: OmniDiffusionConfig, **values: Any) -> OmniDiffusionConfig:
        if change == "model_copy":
            return config.model_copy(update=values)
        return getattr(config, change)(**values)

    Path("good.toml").write_text("max_num_seqs = 3")
    config = OmniDiffusionConfig.from_file("good.toml")
    copied = changed(config, max_retries="7", dtype=torch.float16)
    assert (copied.max_num_seqs, copied.max_retries, copied.dtype) == (3, 7, "float16")
    assert copied.sources()["max_retries"] == "argument"
    assert copied.sources()["max_num_seqs"] == "file good.toml"
    for wrong, words in [({"max_num_seqs": 0}, "closest valid value is 1"), ({"max_num_seq": 1}, "'max_num_seqs'")]:
        with pytest.raises(ConfigError, match=words):
            changed(config, **wrong)


def test_forms_that_people_use() -> None:
    config = OmniDiffusionConfig(model=Path("models/sd"), dtype=torch.float16, device=torch.device("cpu"))
    assert (config.model, config.dtype, config.device) == ("models/sd", "float16", "cpu")
    assert pickle.loads(pickle.dumps(config)) == config


def test_every_field_is_described() -> None:
    for name, field in OmniDiffusionConfig.model_fields.items():
        assert field.description, name
