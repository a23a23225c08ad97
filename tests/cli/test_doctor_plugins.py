"""What can be wrong with plugins, of distributions that pip really installs, cured by the pip that doctor names."""

from __future__ import annotations

import pytest

from cli.doctor_harness import Machine
from omni_core.plugins import selection

pytestmark = pytest.mark.install

PLUGIN = """
from omni_core import ExecutorSpec, hookimpl


@hookimpl
def omni_register_executors():
    return [ExecutorSpec("acme", "acme_exec:Executor", options="acme_exec:Options", api={api})]
"""
EXECUTOR = """
from omni_core.executors.inline import InlineExecutor
from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    speed: int = 1


class Executor(InlineExecutor):
    pass
"""
REFUSES = """
from omni_core import hookimpl
from omni_core.errors import ConfigError


@hookimpl
def omni_configure(config):
    if config.max_num_seqs > 4:
        raise ConfigError("The licence of acme is for max_num_seqs = 4.")
"""
NAME = "omni-exec-acme"


@pytest.fixture
def machine(omni, tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    return Machine(omni, tmp_path, site, monkeypatch)


def publish(machine, version, api=1, requires=(), name=NAME, before="", executor=EXECUTOR):
    module = f"acme_{name.removeprefix('omni-exec-').replace('-', '_')}_plugin"
    files = {f"{module}.py": before + PLUGIN.format(api=api), "acme_exec.py": executor}
    machine.publish(name, version, files, requires, f"acme = {module}")


def found(machine, check, state="problem"):
    [finding] = [one for one in machine.findings() if one["check"] == check]
    assert finding["state"] == state
    return finding


def test_a_plugin_that_is_not_installed(machine):
    publish(machine, "1.0")
    machine.export(OMNI_EXECUTOR_CLASS="acme")
    finding = found(machine, "executor")
    assert "There is no executor 'acme'" in finding["detail"]
    assert "pip install" not in finding["detail"] + finding["cure"]  # anybody's, or nobody's
    machine.patch.setattr(selection, "PUBLISHED", ("acme",))
    finding = found(machine, "executor")
    assert "`pip install omni-exec-acme`" in finding["cure"]
    machine.follow(finding["cure"])
    assert machine.findings() == []


def test_a_plugin_that_is_broken(machine):
    publish(machine, "1.0", before="import acme_what_nobody_has\n")
    machine.install("omni-exec-acme==1.0")
    publish(machine, "1.1")
    finding = found(machine, "plugin omni-exec-acme:acme", "warning")
    assert "1.0 is broken: ModuleNotFoundError: No module named 'acme_what_nobody_has'" in finding["detail"]
    assert "`export OMNI_PLUGINS_DISABLE=omni-exec-acme:acme`" in finding["cure"]
    machine.export(OMNI_EXECUTOR_CLASS="acme")
    assert "`pip install --upgrade omni-exec-acme`" in found(machine, "executor")["cure"]
    machine.follow(finding["cure"])
    assert machine.findings() == []


def test_a_plugin_for_an_older_contract(machine):
    publish(machine, "1.0", api=0)
    machine.install("omni-exec-acme==1.0")
    publish(machine, "1.1")
    machine.export(OMNI_EXECUTOR_CLASS="acme")
    finding = found(machine, "plugin omni-exec-acme:acme", "warning")
    assert "is incompatible" in finding["detail"]
    assert found(machine, "executor")["cure"] == "`pip install --upgrade omni-exec-acme`"
    machine.follow(finding["cure"])
    assert machine.findings() == []


def test_a_plugin_for_a_newer_contract(machine):
    publish(machine, "2.0", api=2)
    machine.install("omni-exec-acme")
    machine.export(OMNI_EXECUTOR_CLASS="acme")
    assert "`pip install --upgrade omni-core`" in found(machine, "plugin omni-exec-acme:acme", "warning")["cure"]
    assert found(machine, "executor")["cure"] == "`pip install --upgrade omni-core`"


def test_a_requirement_of_a_plugin_that_is_too_old(machine):
    publish(machine, "1.0", requires=["acme-lib>=2"])
    machine.publish("acme-lib", "1.0", {"acme_lib.py": ""})
    machine.install("omni-exec-acme acme-lib==1.0")
    machine.publish("acme-lib", "2.1", {"acme_lib.py": ""})
    finding = found(machine, "acme-lib")
    assert finding["detail"] == "1.0 is installed; omni-exec-acme 1.0 requires >=2"
    assert finding["cure"] == "`pip install --upgrade 'acme-lib>=2'`"
    machine.follow(finding["cure"])
    assert machine.findings() == []


def test_a_requirement_that_is_missing_behind_another(machine):
    publish(machine, "1.0", requires=["acme-lib[fast]", "acme-not-here; python_version < '3'"])
    requires = ["acme-deep; extra == 'fast'", "acme-other; extra == 'slow'"]
    machine.publish("acme-lib", "1.0", {"acme_lib.py": ""}, requires)
    machine.publish("acme-deep", "1.0", {"acme_deep.py": ""})
    machine.install("omni-exec-acme acme-lib")
    finding = found(machine, "acme-deep", "warning")
    assert finding["detail"] == "not installed; acme-lib requires it"
    machine.follow(finding["cure"])
    assert machine.findings() == []


def test_a_plugin_that_is_too_old_for_this_core(machine):
    publish(machine, "1.0", requires=["omni-core<0.0.1"])
    machine.install("omni-exec-acme==1.0")
    publish(machine, "1.1", requires=["omni-core"])
    finding = found(machine, "omni-core")
    assert "requires <0.0.1: that plugin is too old" in finding["detail"]
    assert finding["cure"] == "`pip install --upgrade omni-exec-acme`"
    machine.follow(finding["cure"])
    assert machine.findings() == []


def test_a_plugin_that_is_too_new_for_this_core(machine):
    publish(machine, "1.0", requires=["omni-core>=99"])
    machine.install("omni-exec-acme")
    assert found(machine, "omni-core")["cure"] == "`pip install --upgrade 'omni-core>=99'`"


def test_two_plugins_with_one_executor(machine):
    for name in (NAME, "omni-exec-acme-too"):
        publish(machine, "1.0", name=name)
        machine.install(name)
    finding = found(machine, "plugins", "warning")
    assert "registered by omni-exec-acme and by omni-exec-acme-too" in finding["detail"]
    machine.export(OMNI_EXECUTOR_CLASS="acme")
    assert found(machine, "executor")["cure"].startswith("`export OMNI_EXECUTOR_CLASS=omni-exec-acme:acme`")
    machine.follow(finding["cure"])
    assert machine.findings() == []


def test_options_that_the_executor_does_not_have(machine):
    publish(machine, "1.0")
    machine.install(NAME)
    machine.flags = ["--executor-class", "acme", "--executor-options", "sped=3"]
    finding = found(machine, "executor")
    assert "sped" in finding["detail"]
    assert finding["cure"] == "Correct the flag --executor-options; the executor acme has the options speed"
    machine.flags[-1] = "speed=3"
    assert machine.findings() == []


def test_an_executor_whose_own_module_is_broken(machine):
    publish(machine, "1.0", executor="raise OSError('libacme.so.1: cannot open shared object file')\n")
    machine.install("omni-exec-acme==1.0")
    publish(machine, "1.1")
    machine.export(OMNI_EXECUTOR_CLASS="acme")
    finding = found(machine, "executor")
    assert "libacme.so.1" in finding["detail"]
    machine.follow(finding["cure"])
    assert machine.findings() == []


def test_a_plugin_that_refuses_the_configuration(machine):
    machine.publish("acme-licence", "1.0", {"acme_licence.py": REFUSES}, (), "licence = acme_licence")
    machine.install("acme-licence")
    finding = found(machine, "plugins")
    assert finding["detail"] == "The licence of acme is for max_num_seqs = 4."
    machine.export(OMNI_MAX_NUM_SEQS=4)
    assert machine.findings() == []


def test_metadata_that_cannot_be_read(machine):
    folder = machine.site / "acme_odd-1.0.dist-info"
    folder.mkdir()
    (folder / "entry_points.txt").write_text("[omni_core\n")
    (folder / "METADATA").write_bytes(b"\xff\xfe\x00")
    assert {"python", "torch", "model"} <= {check["check"] for check in machine.report()["checks"]}
