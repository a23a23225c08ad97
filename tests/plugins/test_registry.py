from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_core import plugins
from omni_core.errors import (
    ConfigError,
    ExecutorNotFoundError,
    OmniError,
    PluginConflictError,
    PluginError,
    PluginVersionError,
)
from omni_core.executor import DiffusionExecutor
from omni_core.executors import plugin as core_plugin
from omni_core.hookspecs import OBSERVERS, ExecutorSpec, hookimpl
from omni_core.plugins import PluginRegistry
from omni_core.plugins.records import is_import_path, normalise

INLINE = [EntryPoint("inline", "omni_core.executors.plugin", "omni_core")]


class GoodExecutor(DiffusionExecutor):
    def _init_executor(self): ...
    def collective_rpc(self, method, timeout=None, args=(), kwargs=None, unique_reply_rank=None): ...
    def execute_model(self, requests): ...
    def check_health(self): ...
    def shutdown(self): ...


class HalfExecutor(DiffusionExecutor):
    def _init_executor(self): ...
    def execute_model(self, requests): ...
    def shutdown(self): ...


class GoodOptions(pydantic.BaseModel):
    address: str = "localhost"


def only(registry: PluginRegistry):
    (record,) = registry.records
    return record


def plugin(**hooks):
    """A plugin module made of functions."""
    module = types.ModuleType("made_in_a_test")
    for name, function in hooks.items():
        setattr(module, name, hookimpl(function))
    return module


def offer(*specs: ExecutorSpec):
    return plugin(omni_register_executors=lambda: specs)


def empty() -> PluginRegistry:
    return PluginRegistry([], disabled=())


# Discovery


def test_a_plugin_is_found_and_its_executor_not_imported(world):
    world.module("heavy", world.executor("Fast"))
    world.install("Acme.Exec", version="2.5", plug_acme=world.offering("'fast', 'heavy:Fast', 'Very fast.'"))
    registry = world.registry()
    record = only(registry)
    assert "heavy" not in sys.modules
    assert (record.name, record.distribution, record.version, record.value) == ("acme", "Acme.Exec", "2.5", "plug_acme")
    assert record.state == "active"
    assert record.hooks == ("omni_register_executors",)
    assert record.executors == (ExecutorSpec("fast", "heavy:Fast", "Very fast."),)
    assert registry.executors == ((record, record.executors[0]),)
    resolved = registry.resolve_executor("fast")
    assert "heavy" in sys.modules
    assert resolved.cls is sys.modules["heavy"].Fast
    assert (resolved.name, resolved.distribution, resolved.options) == ("fast", "Acme.Exec", None)


def test_the_core_is_a_plugin_like_any_other():
    registry = PluginRegistry(INLINE, disabled=())
    (spec,) = only(registry).executors
    assert (spec.name, spec.target) == ("inline", "omni_core.executors.inline:InlineExecutor")
    assert tuple(core_plugin.omni_register_executors()) == (spec,)
    assert registry.resolve_executor("inline").cls.__name__ == "InlineExecutor"


def test_discovery_imports_neither_torch_nor_diffusers_nor_an_executor():
    code = (
        "import sys; from importlib.metadata import EntryPoint; from omni_core.plugins import PluginRegistry\n"
        "PluginRegistry([EntryPoint('inline', 'omni_core.executors.plugin', 'omni_core')])\n"
        "assert 'omni_core.executors.plugin' in sys.modules\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'omni_core.executor', 'omni_core.executors.inline'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    source = str(Path(plugins.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("source", "cause", "message"),
    [
        ("raise RuntimeError('no licence')", RuntimeError, "no licence"),
        ("import sys; sys.exit(3)", SystemExit, "3"),
        ("class Panic(BaseException): pass\nraise Panic('in Rust')", BaseException, "in Rust"),
        ("import surely_not_installed", ModuleNotFoundError, "surely_not_installed"),
        ("def broken(:", SyntaxError, "broken"),
    ],
)
def test_a_module_that_fails_at_import_harms_nothing(world, log, source, cause, message):
    world.install("acme", plug_a=source)
    world.install("zeta", plug_z=world.offering("'fast', 'zmod:Fast'"))
    world.module("zmod", world.executor("Fast"))
    registry = world.registry()
    broken, good = registry.records
    assert (broken.state, good.state) == ("broken", "active")
    assert isinstance(broken.error, cause)
    (line,) = log.at("warning")
    assert "acme:a (1.0)" in line
    assert message in line
    assert registry.resolve_executor("fast").distribution == "zeta"
    with pytest.raises(PluginError, match=r"distribution acme 1\.0 is broken") as caught:
        registry.resolve_executor("a")
    assert caught.value.__cause__ is broken.error
    assert message in str(caught.value)


def test_a_keyboard_interrupt_at_import_is_the_users(world):
    world.install("acme", plug_a="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        world.registry()


@pytest.mark.parametrize("choice", ["acme", "a", "my", "omni-exec-my", "omni_exec.my:a", "omni-exec-my:whatever"])
def test_a_broken_plugin_answers_to_its_names(world, choice):
    world.install("omni-exec-my", points={"a": "plug_a", "acme": "plug_a"}, plug_a="1/0")
    with pytest.raises(PluginError, match="division by zero") as caught:
        world.registry().resolve_executor(choice)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "@hookimpl\ndef omni_request_stp(request_id): ...",
            "no hook 'omni_request_stp'. Did you mean 'omni_request_step'?",
        ),
        ("@hookimpl\ndef helper(): ...", "no hook 'helper'"),
        ("@hookimpl\ndef omni_request_step(request_id, stap): ...", "stap"),
        ("def omni_register_executors(): return []", "Put @hookimpl above"),
        ("@hookimpl(wrapper=True)\ndef omni_engine_closed(config):\n    return (yield)", "wrapper"),
        ("@hookimpl(hookwrapper=True)\ndef omni_engine_closed(config):\n    yield", "wrapper"),
        ("@hookimpl\nasync def omni_request_finished(output): ...", "async def"),
        ("@hookimpl\ndef omni_request_finished(output): yield", "yield"),
        ("@hookimpl\ndef omni_request_step(*, step): ...", "keyword-only"),
        ("@hookimpl\ndef omni_register_executors(): ...", "gave None where a list of ExecutorSpec"),
        ("@hookimpl\ndef omni_register_executors(): return ExecutorSpec('a', 'b:C')", "where a list"),
        ("@hookimpl\ndef omni_register_executors(): return 'fast'", "gave 'fast' where a list"),
        ("@hookimpl\ndef omni_register_executors(): return ['fast']", "gave 'fast' where an ExecutorSpec"),
        ("@hookimpl\ndef omni_register_executors(): raise OSError('disk')", "disk"),
        ("@hookimpl\ndef omni_register_executors(): raise SystemExit('bye')", "bye"),
        (
            "@hookimpl\ndef omni_register_executors(): return [ExecutorSpec('a', 'b:C'), ExecutorSpec('a', 'b:D')]",
            "twice",
        ),
        ("def __dir__(): raise RuntimeError('lazy')", "lazy"),
    ],
)
def test_a_plugin_with_an_unsound_hook_is_broken_and_left_out_whole(world, log, source, message):
    sound = "\n@hookimpl\ndef omni_worker_died(replica): raise AssertionError('called though broken')\n"
    world.install("acme", plug_a=world.hooks(source + sound))
    registry = world.registry()
    assert only(registry).state == "broken"
    assert only(registry).hooks == ()
    assert message in str(only(registry).error)
    assert len(log.at("warning")) == 1
    assert message in log.at("warning")[0]
    assert "acme:a" in log.at("warning")[0]
    registry.notify("omni_worker_died", replica=0, rank=0, reason="")
    assert registry.hook.omni_worker_died.get_hookimpls() == []
    assert len(log.events) == 1


@pytest.mark.parametrize(
    "spec",
    [
        ExecutorSpec("", "m:C"),
        ExecutorSpec("a:b", "m:C"),
        ExecutorSpec("a b", "m:C"),
        ExecutorSpec(None, "m:C"),  # type: ignore[arg-type]
        ExecutorSpec("a", "m.C"),
        ExecutorSpec("a", "m:"),
        ExecutorSpec("a", ":C"),
        ExecutorSpec("a", "m/x:C"),
        ExecutorSpec("a", GoodExecutor),  # type: ignore[arg-type]
        ExecutorSpec("a", "m:C", options="Options"),
        ExecutorSpec("a", "m:C", api="1"),  # type: ignore[arg-type]
        ExecutorSpec("a", "m:C", summary=None),  # type: ignore[arg-type]
    ],
)
def test_a_malformed_spec_is_refused(spec):
    registry = empty()
    with pytest.raises(PluginError, match="cannot be used") as caught:
        registry.register(offer(spec))
    assert isinstance(caught.value.__cause__, PluginError)
    assert registry.records == ()


def test_optional_hooks_of_other_versions_and_generators_of_specs_are_fine():
    specs = (ExecutorSpec("a", "m:C"), ExecutorSpec("b", "m.n:C.D"))

    def register():
        yield from specs

    module = plugin(omni_register_executors=register)
    module.omni_of_the_future = hookimpl(optionalhook=True)(lambda anything: None)
    assert empty().register(module).executors == specs


def test_two_entry_points_of_one_name_both_live(world):
    world.install("acme", points={"x": "plug_a"}, plug_a=world.offering("'a', 'm:A'"))
    world.install("zeta", points={"x": "plug_z"}, plug_z=world.offering("'z', 'm:Z'"))
    registry = world.registry()
    assert [spec.name for _, spec in registry.executors] == ["a", "z"]


def test_two_entry_points_to_one_module(world):
    world.install("acme", points={"x": "plug_a", "y": "plug_a"}, plug_a=world.offering("'a', 'm:A'"))
    first, second = world.registry().records
    assert (first.state, second.state) == ("active", "broken")
    assert "already registered as 'acme:x'" in str(second.error)


@pytest.mark.parametrize("value", ["no/path", "plug_a:missing", "", "plug_a:Plain", "plug_a:nothing"])
def test_a_malformed_entry_point_is_broken(world, value):
    world.module("plug_a", "class Plain: ...\nnothing = None")
    registry = PluginRegistry([EntryPoint("a", value, "omni_core")], disabled=())
    assert only(registry).state == "broken"
    assert only(registry).distribution is None


def test_records_do_not_depend_on_the_order_of_installation(world):
    for name in ("zeta", "acme", "mid"):
        world.install(name, **{f"plug_{name}": world.hooks("")})
    expected = ["acme", "mid", "zeta"]
    assert [record.distribution for record in world.registry().records] == expected
    world.entry_points.reverse()
    assert [record.distribution for record in world.registry().records] == expected


def test_unreadable_metadata_of_a_stranger_hides_no_plugin(world):
    world.install("acme", plug_acme_unreadable=world.offering("'fast', 'm:C'"))
    stranger = world.folder / "stranger-1.0.dist-info"
    stranger.mkdir()
    stranger.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    stranger.joinpath("entry_points.txt").write_bytes(b"[console_scripts]\n\xff\xfe = x\n")
    registry = PluginRegistry(disabled=())
    assert "acme" in [record.distribution for record in registry.records]


def test_to_dict_is_json(world):
    world.install("acme", plug_a="raise ValueError('because')")
    world.install("zeta", plug_z=world.offering("'fast', 'm:C', options='m:O'"))
    broken, good = json.loads(json.dumps([record.to_dict() for record in world.registry().records]))
    assert broken["state"] == "broken"
    assert broken["error"] == "ValueError: because"
    assert good["executors"] == [{"name": "fast", "target": "m:C", "summary": "", "options": "m:O", "api": 1}]
    assert good["error"] is None


# Disabling


@pytest.mark.parametrize("names", ["Omni_Exec.Acme", "plug", " x ,PLUG,", "omni-exec-acme:plug", ("plug",)])
def test_a_disabled_plugin_is_not_even_imported(world, names):
    world.install("omni-exec-acme", points={"plug": "plug_a"}, plug_a="raise RuntimeError")
    registry = world.registry(disabled=names)
    assert only(registry).state == "disabled"
    assert only(registry).error is None
    assert "plug_a" not in sys.modules
    for choice in ("acme", "plug", "omni-exec-acme:acme"):
        with pytest.raises(PluginError, match="OMNI_PLUGINS_DISABLE leaves out the plugin 'plug'"):
            registry.resolve_executor(choice)


def test_the_environment_disables(world, monkeypatch, log):
    monkeypatch.setenv("OMNI_PLUGINS_DISABLE", "acme, not-here-at-all")
    world.install("acme", plug_a="raise RuntimeError")
    assert only(world.registry(disabled=None)).state == "disabled"
    assert log.events == []
    world.registry(disabled="acmee")
    assert "Did you mean 'acme'?" in log.at("warning")[-1]


# Selection


def test_options_come_along():
    registry = empty()
    registry.register(
        offer(ExecutorSpec("good", f"{__name__}:GoodExecutor", options=f"{__name__}:GoodOptions")), "mine"
    )
    for choice in ("good", "mine:good", f"{__name__}:GoodExecutor", GoodExecutor):
        resolved = registry.resolve_executor(choice)
        assert (resolved.cls, resolved.options) == (GoodExecutor, GoodOptions)
        assert resolved.spec is not None


def test_a_class_or_path_nobody_registered():
    for choice in (GoodExecutor, f"{__name__}:GoodExecutor"):
        resolved = empty().resolve_executor(choice)
        assert resolved.cls is GoodExecutor
        assert (resolved.options, resolved.spec, resolved.distribution) == (None, None, None)
        assert resolved.name == f"{__name__}:GoodExecutor"


def test_two_distributions_with_one_executor_name(world):
    for name in ("acme", "zeta"):
        world.install(name, **{f"plug_{name}": world.offering(f"'fast', 'mod_{name}:Fast'")})
        world.module(f"mod_{name}", world.executor("Fast"))
    registry = world.registry()
    with pytest.raises(PluginConflictError) as caught:
        registry.resolve_executor("fast")
    for part in ("distribution acme 1.0", "distribution zeta 1.0", "'acme:fast'", "'zeta:fast'"):
        assert part in str(caught.value)
    assert registry.resolve_executor("zeta:fast").cls.__module__ == "mod_zeta"
    assert registry.resolve_executor("ACME:fast").cls.__module__ == "mod_acme"


def test_a_name_of_the_core_stays_the_cores(world, log):
    world.install("omni-exec-acme", plug_a=world.offering("'fast', 'm:A'", "'inline', 'm:B'"))
    world.entry_points += INLINE
    for points in (world.entry_points, world.entry_points[::-1]):
        registry = PluginRegistry(points, disabled=())
        assert registry.resolve_executor("inline").cls.__name__ == "InlineExecutor"
        record = next(record for record in registry.records if record.distribution == "omni-exec-acme")
        assert record.state == "broken"
        assert "'inline', which is a name of omni-core's own" in record.to_dict()["error"]
        assert "omni-exec-acme:a (1.0)" in log.at("warning")[-1]
        with pytest.raises(PluginError, match="name of omni-core's own"):
            registry.resolve_executor("omni-exec-acme:inline")
    with pytest.raises(PluginError, match="name of omni-core's own"):
        registry.register(offer(ExecutorSpec("inline", f"{__name__}:GoodExecutor")))
    assert registry.resolve_executor("inline").cls.__name__ == "InlineExecutor"


def test_the_names_of_the_core_are_those_that_it_registers():
    assert {spec.name for spec in core_plugin.omni_register_executors()} == core_plugin.NAMES


def test_a_name_that_two_plugins_have_harms_nobody_who_does_not_ask_for_it(world):
    for name in ("acme", "zeta"):
        world.install(name, **{f"plug_{name}": world.offering(f"'fast', 'm:{name}'", f"'{name}', 'mod:Own'")})
    world.module("mod", world.executor("Own"))
    world.entry_points += INLINE
    registry = world.registry()
    assert [record.state for record in registry.records] == ["active"] * 3
    assert registry.resolve_executor("inline").cls.__name__ == "InlineExecutor"
    assert registry.resolve_executor("acme").distribution == "acme"
    with pytest.raises(PluginConflictError):
        registry.resolve_executor("fast")


def test_two_plugins_of_one_distribution_with_one_executor_name(world):
    world.install("acme", plug_a=world.offering("'fast', 'm:A'"), plug_b=world.offering("'fast', 'm:B'"))
    with pytest.raises(PluginConflictError, match="executor_class='m:A' or executor_class='m:B'"):
        world.registry().resolve_executor("acme:fast")


@pytest.mark.parametrize(("api", "advice"), [(2, "--upgrade omni-core"), (0, "--upgrade acme-exec")])
def test_another_contract_version_says_which_side_to_upgrade(world, log, api, advice):
    world.install(
        "acme-exec",
        plug_a=world.offering(f"'fast', 'm:C', api={api}") + "@hookimpl\ndef omni_engine_closed(config): 1/0\n",
    )
    registry = world.registry()
    assert only(registry).state == "incompatible"
    assert isinstance(only(registry).error, PluginVersionError)
    assert only(registry).executors[0].name == "fast"
    assert len(log.at("warning")) == 1
    for choice in ("fast", "acme_exec:fast"):
        with pytest.raises(PluginVersionError, match=advice):
            registry.resolve_executor(choice)
    registry.notify("omni_engine_closed", config=None)
    assert len(log.events) == 1


def test_an_executor_of_another_version_does_not_stand_in_the_way(world):
    world.install("acme", plug_a=world.offering("'fast', 'm:C', api=9", "'other', 'm:C'"))
    world.install("zeta", plug_z=world.offering("'fast', 'zmod:Fast'"))
    world.module("zmod", world.executor("Fast"))
    registry = world.registry()
    assert [record.state for record in registry.records] == ["active", "active"]
    assert registry.resolve_executor("fast").distribution == "zeta"
    with pytest.raises(PluginVersionError):
        registry.resolve_executor("acme:fast")


def test_an_unknown_name_says_what_there_is(world):
    world.install("acme", plug_a=world.offering("'multiproc', 'm:C'", "'fast', 'm:D'"))
    world.install("zeta", plug_z="1/0")
    registry = world.registry()
    with pytest.raises(ExecutorNotFoundError) as caught:
        registry.resolve_executor("multiprc")
    for part in ("'multiprc'", "Did you mean 'multiproc'?", "fast, multiproc", "zeta:z (broken)"):
        assert part in str(caught.value)
    assert "pip install" not in str(caught.value)
    with pytest.raises(ExecutorNotFoundError, match="Did you mean 'multiproc'") as caught:
        registry.resolve_executor("Multiproc")
    assert "pip install" not in str(caught.value)
    with pytest.raises(ExecutorNotFoundError, match=r"with a colon: executor_class='pkg\.mod:Class'"):
        registry.resolve_executor("pkg.mod.Class")
    with pytest.raises(ExecutorNotFoundError, match="The distribution acme offers: acme:multiproc, acme:fast"):
        registry.resolve_executor("acme:fst")
    with pytest.raises(ExecutorNotFoundError, match="No plugin comes from a distribution 'my-dist'"):
        registry.resolve_executor("my-dist:fast")
    with pytest.raises(ExecutorNotFoundError, match="install omni-core with pip"):
        empty().resolve_executor("inline")


@pytest.mark.parametrize(
    ("choice", "proposed"),
    [
        ("multiproc", "omni-exec-multiproc"),
        ("omni-exec-torchrun", "omni-exec-torchrun"),
        ("Multiproc", "omni-exec-multiproc"),
        ("multiprc", "omni-exec-multiproc"),
        ("torch_run", "omni-exec-torchrun"),
        ("xyzzy", None),
        ("inlin", None),
        ("slurm", None),
        ("omni-exec-nonsense", None),
        ("; rm -rf /", None),
    ],
)
def test_pip_is_proposed_for_what_there_is(world, choice, proposed):
    """Whoever reads a proposal types it: a name that is free today may be anybody's tomorrow."""
    world.install("omni-core", points={"inline": "omni_core.executors.plugin"})
    with pytest.raises(ExecutorNotFoundError) as caught:
        world.registry().resolve_executor(choice)
    found = re.findall(r"pip install (\S+)", str(caught.value))
    assert found == ([proposed] if proposed else [])


@given(st.text())
def test_no_text_escapes_the_error_tree(choice):
    with pytest.raises(PluginError):
        empty().resolve_executor(choice)


@given(st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", fullmatch=True), st.text("-_.", min_size=1))
def test_names_are_compared_as_pep_503_says(name, separators):
    assert normalise(name) == normalise(name.upper()) == normalise(normalise(name))
    assert normalise(f"{name}{separators}x") == normalise(f"{name}-x")
    assert not is_import_path(name)


def test_an_import_that_failed_is_tried_again(world):
    world.install("acme", plug_a=world.offering("'fast', 'late.mod:Fast'"))
    registry = world.registry()
    for _ in range(2):
        with pytest.raises(ExecutorNotFoundError, match=r"no module 'late'.*executor 'fast' of distribution acme"):
            registry.resolve_executor("fast")
    world.module("late.mod", "raise RuntimeError('not today')")
    with pytest.raises(PluginError, match="not today") as caught:
        registry.resolve_executor("fast")
    assert isinstance(caught.value.__cause__, RuntimeError)
    world.module("late.mod", "import dependency_that_is_missing.part")
    with pytest.raises(PluginError, match="needs the module 'dependency_that_is_missing', which is not installed"):
        registry.resolve_executor("fast")
    world.module("late.mod", world.executor("Fast") + "\n\n# longer, so that no stale bytecode is taken for it")
    assert registry.resolve_executor("fast").cls.__name__ == "Fast"


@pytest.mark.parametrize(
    ("choice", "kind", "message"),
    [
        ("omod:Executer", ExecutorNotFoundError, "no 'Executer'. Did you mean 'Executor'?"),
        ("omod:Outer.Inner", ExecutorNotFoundError, "no 'Inner'"),
        ("omod:plain", PluginError, "no class"),
        ("omod:Plain", PluginError, "no subclass of omni_core.DiffusionExecutor"),
        ("omod:lazy", PluginError, "OSError: cannot load"),
        ("omod.sub:X", ExecutorNotFoundError, "no module 'omod.sub'"),
        (int, PluginError, "builtins:int is no subclass"),
        (HalfExecutor, PluginError, "it lacks check_health, collective_rpc"),
        (DiffusionExecutor, PluginError, "it lacks"),
        ("", ExecutorNotFoundError, "give a registered name"),
        (None, ExecutorNotFoundError, "give a registered name"),
        ("a:b:c", ExecutorNotFoundError, "There is no executor 'a:b:c'"),
    ],
)
def test_what_is_no_executor_is_refused(world, choice, kind, message):
    world.module(
        "omod",
        """
        plain = 3
        class Plain: ...
        class Outer: ...
        class Executor: ...
        def __getattr__(name):
            if name == "lazy": raise OSError("cannot load libacme.so")
            raise AttributeError(name)
        """,
    )
    with pytest.raises(PluginError) as caught:
        empty().resolve_executor(choice)
    assert type(caught.value) is kind
    assert message in str(caught.value)


def test_options_that_are_no_model():
    registry = empty()
    registry.register(offer(ExecutorSpec("a", f"{__name__}:GoodExecutor", options="json:dumps")))
    with pytest.raises(PluginError, match="no pydantic model"):
        registry.resolve_executor("a")


# Plugins given in code


def test_register_an_object_with_methods():
    class Counter:
        def __init__(self):
            self.steps = []

        @hookimpl
        def omni_request_step(self, step, request_id):
            self.steps.append((request_id, step))

    registry, counter = empty(), Counter()
    record = registry.register(counter)
    assert (record.name, record.hooks) == ("Counter", ("omni_request_step",))
    registry.notify("omni_request_step", request_id="r", step=1, num_steps=4)
    assert counter.steps == [("r", 1)]
    with pytest.raises(PluginError, match="already"):
        registry.register(counter, "again")
    with pytest.raises(PluginError, match="already is a plugin 'Counter'"):
        registry.register(Counter())
    for wrong in (Counter, None):
        with pytest.raises(PluginError, match="is no plugin"):
            registry.register(wrong, "wrong")
    registry.notify("omni_request_step", request_id="r", step=2, num_steps=4)
    assert counter.steps == [("r", 1), ("r", 2)]


def test_register_reports_another_contract_version():
    with pytest.raises(PluginError, match="bring it up to date"):
        empty().register(offer(ExecutorSpec("a", "m:C", api=0)))


# Hooks


@pytest.mark.parametrize("raised", [ValueError, SystemExit, type("Panic", (BaseException,), {})])
def test_an_observer_that_raises_is_logged_and_goes_no_further(log, raised):
    heard = []

    def fail(output):
        raise raised("observer's fault")

    registry = empty()
    registry.register(plugin(omni_request_finished=lambda output, **_: heard.append(output)), "first")
    registry.register(plugin(omni_request_finished=fail), "faulty")
    registry.register(plugin(omni_request_finished=lambda output, **_: heard.append(output)), "last")
    for number in range(3):
        registry.notify("omni_request_finished", output=number)
    assert heard == [0, 0, 1, 1, 2, 2]
    first, *later = log.events
    assert first["level"] == "warning"
    assert "faulty" in first["event"]
    assert "omni_request_finished" in first["event"]
    assert "observer's fault" in first["exception"]
    assert [event["level"] for event in later] == ["debug", "debug"]


def test_a_keyboard_interrupt_in_an_observer_is_the_users():
    def interrupted(config):
        raise KeyboardInterrupt

    registry = empty()
    registry.register(plugin(omni_engine_closed=interrupted))
    with pytest.raises(KeyboardInterrupt):
        registry.notify("omni_engine_closed", config=None)


def test_an_implementation_gets_the_arguments_that_it_takes():
    got = []
    registry = empty()
    registry.register(plugin(omni_request_step=lambda: got.append(())), "none")
    registry.register(plugin(omni_request_step=lambda num_steps, step: got.append((num_steps, step))), "turned")
    registry.register(
        plugin(omni_request_step=lambda step, /, request_id="?", later=5: got.append((step, request_id, later))),
        "defaults",
    )
    registry.notify("omni_request_step", request_id="r", step=1, num_steps=4)
    assert got == [(1, "r", 5), (4, 1), ()]


def test_pluggys_order_is_kept():
    got = []
    registry = empty()
    for name, marks in (("a", {}), ("b", {"trylast": True}), ("c", {}), ("d", {"tryfirst": True}), ("e", {})):
        module = types.ModuleType(name)
        module.omni_engine_closed = hookimpl(**marks)(lambda name=name: got.append(name))
        registry.register(module)
    registry.hook.omni_engine_closed(config=None, engine_id="1")
    by_pluggy = got.copy()
    got.clear()
    registry.notify("omni_engine_closed", config=None)
    assert got == by_pluggy == ["d", "e", "c", "a", "b"]


@pytest.mark.parametrize("hook_name", sorted(OBSERVERS))
def test_each_observer_can_be_notified_with_nobody_there(hook_name):
    empty().notify(hook_name)


def test_a_hook_that_does_not_exist():
    with pytest.raises(KeyError):
        empty().notify("omni_request_stp")


def test_call_strict_names_the_plugin_and_keeps_our_own_errors():
    def explode(config):
        raise ZeroDivisionError("in the plugin")

    def refuse(config):
        raise ConfigError("The licence server wants device=cuda.")

    registry = empty()
    registry.call_strict("omni_configure", config=None)
    registry.register(plugin(omni_configure=explode), "acme")
    with pytest.raises(PluginError, match="Plugin acme raised in omni_configure: ZeroDivisionError") as caught:
        registry.call_strict("omni_configure", config=None)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    registry.register(plugin(omni_configure=refuse), "licence")
    with pytest.raises(ConfigError, match="licence server"):
        registry.call_strict("omni_configure", config=None)


def test_registries_share_nothing():
    one, other = empty(), empty()
    one.register(plugin(omni_engine_closed=lambda: None))
    assert other.records == ()
    assert other.hook.omni_engine_closed.get_hookimpls() == []


# The registry of the process


@pytest.fixture
def fresh_default(monkeypatch):
    monkeypatch.setattr(plugins.registry, "_default", None)


def test_the_default_registry_is_built_once_from_any_thread(fresh_default, monkeypatch):
    built = []
    init = PluginRegistry.__init__
    monkeypatch.setattr(PluginRegistry, "__init__", lambda self: (built.append(self), init(self))[1])
    found: list[PluginRegistry] = []
    threads = [threading.Thread(target=lambda: found.append(plugins.default_registry())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert found == built * 8


def test_a_plugin_that_asks_for_the_registry_at_import_is_broken(fresh_default, world, monkeypatch):
    world.install("acme", plug_asks_too_early="from omni_core.plugins import default_registry\ndefault_registry()")
    (record,) = [record for record in plugins.default_registry().records if record.distribution == "acme"]
    assert isinstance(record.error, OmniError)
    assert "in a hook" in str(record.error)
