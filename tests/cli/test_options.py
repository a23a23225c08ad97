from __future__ import annotations

import json

import pytest

from omni_core.cli.app import COMMANDS, make_app
from omni_core.config import OmniDiffusionConfig
from omni_core.request import OmniDiffusionRequest


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_said_in_one_place(name):
    app = make_app()
    with app.make_context("omni", [name], resilient_parsing=True) as context:
        assert app.get_command(context, name).short_help == COMMANDS[name]


def test_every_field_is_a_flag_with_its_help(omni):
    text = " ".join(omni("generate", "--help", terminal_width=200).stdout.split())
    for model, without in (
        (OmniDiffusionConfig, set()),
        (OmniDiffusionRequest, {"prompt", "request_id", "preview_every", "previews", "metadata"}),
    ):
        for name, field in model.model_fields.items():
            if name not in without:
                assert f"--{name.replace('_', '-')}" in text
                assert field.description.split()[0] in text
    assert "--request-id" not in text
    options, rest = text.split(" Request: ")
    request, config = rest.split(" Configuration (")
    assert "--output" in options
    assert "--seed" in request
    assert "--model" in config


def config_of(omni, *flags):
    result = omni("config", "--json", *flags)
    assert result.exit_code == 0, result.stderr
    return {name: one["value"] for name, one in json.loads(result.stdout)["config"].items()}


def test_flags_reach_the_configuration(omni):
    config = config_of(
        omni,
        *("--max-num-seqs", 3, "--dtype", "float16", "--startup-timeout-s", 1.5, "--trust-remote-code"),
        *("--model-options", "variant=fp16", "--model-options", "n=[1, 2]", "--compile-options", "mode=max-autotune"),
    )
    assert (config["max_num_seqs"], config["dtype"], config["startup_timeout_s"]) == (3, "float16", 1.5)
    assert config["trust_remote_code"] is True
    assert config["model_options"] == {"variant": "fp16", "n": [1, 2]}
    assert config["compile"] == {"mode": "max-autotune"}
    assert config_of(omni, "--compile")["compile"] is True
    assert config_of(omni, "--no-compile")["compile"] is False
    assert config_of(omni, "--cache", "first_block")["cache"] == "first_block"


def test_a_value_and_a_table_exclude_each_other(omni):
    result = omni("config", "--compile", "--compile-options", "mode=x")
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr


def test_a_flag_goes_before_the_environment(omni):
    environment = {"OMNI_MAX_NUM_SEQS": "5", "OMNI_TRUST_REMOTE_CODE": "1"}
    result = omni("config", "--json", "--no-trust-remote-code", env=environment)
    config = json.loads(result.stdout)["config"]
    assert config["max_num_seqs"] == {"value": 5, "source": "environment OMNI_MAX_NUM_SEQS"}
    assert config["trust_remote_code"] == {"value": False, "source": "argument"}


def test_a_word_that_is_no_choice_brings_the_nearest(omni):
    for flags, words in [(("--dtype", "fp16"), "Did you mean 'float16'?"), (("--offload", "modle"), "'model'?")]:
        result = omni("config", *flags)
        assert result.exit_code == 2
        assert words in result.stderr
