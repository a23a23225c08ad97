from __future__ import annotations

import json

import click
import pydantic
import pytest

from omni_core import ExecutorSpec, __version__, hookimpl
from omni_core.errors import OmniError
from omni_core.executors import plugin as core_plugin
from omni_core.plugins import PluginRegistry


class Greeter:
    @hookimpl
    def omni_cli(self, app):
        @app.command("greet", short_help="Say hello.")
        def greet():
            click.echo("hello")


class Raiser:
    @hookimpl
    def omni_cli(self, app):
        raise RuntimeError("I am broken")


class Usurper:
    @hookimpl
    def omni_cli(self, app):
        app.add_command(click.Command("generate"))


class Options(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    speed: int = 1


class Acme:
    """Offers an executor with an option."""

    @hookimpl
    def omni_register_executors(self):
        path = "omni_core.executors.inline:InlineExecutor"
        return [ExecutorSpec("acme", path, options=f"{__name__}:Options")]


class Failer:
    """Adds commands that end in every way."""

    @hookimpl
    def omni_cli(self, app):
        def command(name, error):
            def run():
                raise error

            app.add_command(click.Command(name, callback=run))

        command("omni-error", OmniError("wrong day"))
        command("bug", ZeroDivisionError("nothing to divide by"))
        command("interrupt", KeyboardInterrupt())


def registry(*plugins):
    made = PluginRegistry(entry_points=[], disabled=[])
    for plugin in plugins:
        made.register(plugin)
    return made


def test_version(omni):
    assert omni("--version").stdout == f"omni {__version__}\n"


@pytest.mark.parametrize("order", [1, -1])
def test_a_plugin_that_raises_keeps_nobody_from_adding_commands(omni, order):
    plugins = registry(*[Greeter(), Raiser(), Usurper()][::order])
    result = omni("--help", obj=plugins)
    assert result.exit_code == 0
    assert "Say hello." in result.stdout
    assert "Warning: the plugin Raiser cannot add its commands: RuntimeError: I am broken" in result.stderr
    assert "there is a command `omni generate` already" in result.stderr
    assert omni("greet", obj=plugins).stdout == "hello\n"


def test_own_commands_do_not_ask_plugins(omni):
    assert "broken" not in omni("config", obj=registry(Raiser())).stderr


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("omni-error", 3, "Error: wrong day"),
        ("bug", 3, "Error: unexpected ZeroDivisionError: nothing to divide by"),
        ("interrupt", 130, "Interrupted."),
        ("nonsense", 2, "No such command 'nonsense'"),
    ],
)
def test_how_a_command_can_end(omni, name, code, says):
    result = omni(name, obj=registry(Failer()))
    assert result.exit_code == code
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_config(omni, tmp_path):
    (tmp_path / "omni.toml").write_text("max_num_seqs = 3\n")
    (tmp_path / "other.toml").write_text('device = "cpu"\n')
    result = omni("config", "--dtype", "float16", env={"OMNI_MAX_RETRIES": "5", "OMNI_KIT_PATH": "x"})
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    assert ["max_num_seqs", "3", "file omni.toml"] in lines
    assert ["dtype", "float16", "argument"] in lines
    assert ["max_retries", "5", "environment OMNI_MAX_RETRIES"] in lines
    assert ["device", "auto", "default"] in lines
    assert "OMNI_KIT_PATH" in result.stderr
    document = json.loads(omni("config", "--json", "--config", "other.toml", env={"OMNI_KIT_PATH": "x"}).stdout)
    assert document["config"]["device"] == {"value": "cpu", "source": "file other.toml"}
    assert document["config"]["max_num_seqs"]["source"] == "default"
    assert document["unknown_environment"] == ["OMNI_KIT_PATH"]


def test_config_that_is_wrong(omni):
    result = omni("config", env={"OMNI_MAX_NUM_SEQ": "5"})
    assert result.exit_code == 2
    assert "Did you mean OMNI_MAX_NUM_SEQS?" in result.stderr


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--executor-class", "acme", "--executor-options", "sped=3"], 2, "Did you mean 'speed'?"),
        (["--executor-class", "acme", "--executor-options", "speed=fast"], 2, "executor_options of acme"),
        (["--executor-class", "acme", "--step-timeout-s", "3"], 2, "does not support step_timeout_s"),
        (["--executor-options", "speed=3"], 2, "takes no options"),
        (["--executor-class", "acme", "--executor-options", "speed=3"], 0, ""),
        (
            ["--executor-class", "nonsense"],
            0,
            "was not checked: There is no executor",
        ),
    ],
)
def test_config_knows_the_options_of_the_executor(omni, flags, code, says):
    result = omni("config", *flags, obj=registry(Acme(), core_plugin))
    assert (result.exit_code, says in result.stderr) == (code, True), result.stderr
    assert ("executor_options" in result.stdout) == (code == 0)


def test_plugins(omni):
    [inline] = [one for one in json.loads(omni("plugins", "--json").stdout) if one["name"] == "inline"]
    assert (inline["distribution"], inline["state"], inline["error"]) == ("omni-core", "active", None)
    assert inline["executors"][0]["name"] == "inline"
    table = omni("plugins").stdout
    assert "omni-core" in table
    assert "register_executors" in table


def test_plugins_says_why_one_is_broken(omni):
    from importlib.metadata import EntryPoint

    point = EntryPoint("sad", "no_such_module_at_all", "omni_core")
    result = omni("plugins", obj=PluginRegistry(entry_points=[point], disabled=[]))
    assert result.exit_code == 0
    assert "broken" in result.stdout
    assert (
        "PluginError: Its entry point says 'no_such_module_at_all': there is no module 'no_such_module_at_all'."
        in result.stdout
    )
