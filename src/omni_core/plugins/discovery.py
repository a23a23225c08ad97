"""From an installed entry point to a plugin whose hooks are known to be sound."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.metadata
import inspect
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pluggy

from omni_core.errors import PluginError, did_you_mean
from omni_core.executors import plugin as core_plugin
from omni_core.hookspecs import ENTRY_POINT_GROUP, PROJECT_NAME, ExecutorSpec
from omni_core.log import get_logger
from omni_core.plugins.records import is_import_path, normalise

log = get_logger(__name__)

# Seconds that importing a plugin may take. Every start of an engine and of most `omni` commands waits for it.
SLOW_IMPORT_S = 1.0
# Seconds after which it is said which plugin is waited for.
HANGING_IMPORT_S = 5.0
# What makes an import slow, as a rule.
_HEAVY = ("torch", "diffusers", "transformers", "tensorflow", "jax", "ray", "scipy", "pandas")


def installed_entry_points() -> list[importlib.metadata.EntryPoint]:
    """Return the entry points of our group, and those of groups that are a misspelling of it.

    Some distribution's metadata may be unreadable; it hides no other's.
    """
    try:
        found = importlib.metadata.entry_points()
        groups = [ENTRY_POINT_GROUP, *filter(is_misspelt_group, sorted(found.groups))]
        return [point for group in groups for point in found.select(group=group)]
    except Exception:  # one unreadable entry_points.txt, anywhere in the environment, fails the call above for all
        return _readable_entry_points()


def is_misspelt_group(group: str) -> bool:
    """Return whether the name of an entry-point group was meant to be ours: `omni-core`, `omnicore`, `omni_cores`."""
    if group == ENTRY_POINT_GROUP:
        return False
    plain, ours = ("".join(filter(str.isalnum, name.lower())) for name in (group, ENTRY_POINT_GROUP))
    # A letter too many or too few, or two exchanged. Not another letter: that may well be somebody else's name.
    near = difflib.SequenceMatcher(None, plain, ours).ratio() > 0.9 or sorted(plain) == sorted(ours)
    return near or plain.removeprefix(ours) in ("plugin", "plugins", "executor", "executors", "hooks")


def _readable_entry_points() -> list[importlib.metadata.EntryPoint]:
    found: list[importlib.metadata.EntryPoint] = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        try:
            name = normalise(distribution.metadata["Name"])
            points = distribution.entry_points
            ours = [point for point in points if point.group == ENTRY_POINT_GROUP or is_misspelt_group(point.group)]
        except Exception:  # noqa: S112  # not ours to report: most such distributions have nothing to do with omni
            continue
        if name not in seen:  # a later one of the same name is shadowed on sys.path
            found.extend(ours)
        seen.add(name)
    return found


def identity(entry_point: importlib.metadata.EntryPoint) -> tuple[str | None, str | None]:
    """Return name and version of the distribution that an entry point came with, None where it does not say."""
    try:
        metadata = entry_point.dist.metadata if entry_point.dist is not None else None
        return (metadata["Name"], metadata["Version"]) if metadata is not None else (None, None)
    except Exception:  # metadata that is missing or mangled must not stop the discovery
        return None, None


def load(entry_point: importlib.metadata.EntryPoint) -> tuple[Any, tuple[str, ...]]:
    """Import what an entry point names.

    Returns:
        What it names, and what is to be said of the import.

    Raises:
        PluginError: The entry point cannot be meant so. Whatever the import raises comes through unchanged.
    """
    if entry_point.group and entry_point.group != ENTRY_POINT_GROUP:
        raise PluginError(
            f"Its entry point is in the group {entry_point.group!r}, and plugins are looked for in the group "
            f"{ENTRY_POINT_GROUP!r}: write [project.entry-points.{ENTRY_POINT_GROUP}] in its pyproject.toml and "
            "install it again."
        )
    if entry_point.pattern.match(entry_point.value) is None:
        raise PluginError(
            f"Its entry point says {entry_point.value!r}, which is no import path pkg.mod or pkg.mod:name."
        )
    heavy = [name for name in _HEAVY if name not in sys.modules]
    begun = time.monotonic()
    with _named_while_slow(entry_point):
        plugin = _import(entry_point)
    seconds = time.monotonic() - begun
    if seconds < SLOW_IMPORT_S:
        return plugin, ()
    what = ", ".join(name for name in heavy if name in sys.modules)
    return plugin, (
        f"Importing it took {seconds:.1f} s{f', and it imports {what}' if what else ''}. Every engine and most "
        "commands of omni wait for that: import what is heavy inside of the functions that need it.",
    )


@contextlib.contextmanager
def _named_while_slow(entry_point: importlib.metadata.EntryPoint) -> Iterator[None]:
    """Say which plugin is waited for, if its import does not come to an end."""
    timer = threading.Timer(
        HANGING_IMPORT_S,
        lambda: log.warning(
            f"a plugin is still being imported after {HANGING_IMPORT_S:g} s; leave it out with OMNI_PLUGINS_DISABLE",
            plugin=entry_point.name,
            distribution=identity(entry_point)[0],
        ),
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _import(entry_point: importlib.metadata.EntryPoint) -> Any:
    """Import what an entry point names; where there is no such thing, say what there is."""
    try:
        found: Any = importlib.import_module(entry_point.module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{entry_point.module}.".startswith(f"{error.name}."):
            raise  # a module that it needs
        raise PluginError(f"Its entry point says {entry_point.value!r}: there is no module {error.name!r}.") from error
    for part in filter(None, (entry_point.attr or "").split(".")):
        owner = found
        try:
            found = getattr(owner, part)
        except AttributeError as error:
            near = did_you_mean(part, [name for name in dir(owner) if not name.startswith("_")])
            raise PluginError(
                f"Its entry point says {entry_point.value!r}: {_call_it(owner)} has no {part!r}.{near}"
            ) from error
    return found


def advice(manager: pluggy.PluginManager, plugin: Any) -> tuple[str, ...]:
    """Return what an author of a registered plugin should be told, though it can be used as it is."""
    known = [name for name, caller in vars(manager.hook).items() if caller.spec is not None]
    found = []
    for name in dir(plugin):
        function = _unbound(plugin, name)
        is_own = inspect.isfunction(function) and function.__module__ == _home_of(plugin)
        if is_own and name not in known and manager.parse_hookimpl_opts(plugin, name) is None:
            if name.startswith("omni_"):
                found.append(f"{name} is no hook and is never called.{did_you_mean(name, known)}")
            elif f"omni_{name}" in known:
                found.append(f"{name} is never called. Did you mean 'omni_{name}'?")
    if not implementations(manager, plugin) and not found:
        found.append(
            "It implements no hook, so it does nothing. Write a function named like one of the hooks of "
            "omni_core.hookspecs, and put @hookimpl above it."
        )
    return tuple(found)


def _unbound(plugin: Any, name: str) -> Any:
    function = inspect.getattr_static(plugin, name, None)
    return getattr(function, "__func__", function)  # staticmethod, classmethod


def _home_of(plugin: Any) -> str:
    """Return the name of the module in which a plugin is written: what it imports from others is not its own."""
    return plugin.__name__ if inspect.ismodule(plugin) else type(plugin).__module__


def admit(manager: pluggy.PluginManager, plugin: Any, name: str) -> tuple[ExecutorSpec, ...]:
    """Register a plugin, or leave `manager` as it was and raise.

    Args:
        manager: Where to register it.
        plugin: A module, or another object with methods marked `hookimpl`.
        name: Its name in `manager`.

    Returns:
        The executors that it offers.

    Raises:
        PluginError: It cannot be meant so. What its own code and pluggy raise comes through unchanged.
    """
    if plugin is None or isinstance(plugin, type):
        raise PluginError(f"{plugin!r} is no plugin: give a module, or an instance of a class.")
    if manager.has_plugin(name):
        raise PluginError(f"There already is a plugin {name!r}.")
    taken = manager.get_name(plugin)
    if taken is not None:
        raise PluginError(f"{_call_it(plugin)} is already registered as {taken!r}.")
    _refuse_unmarked(manager, plugin)
    _refuse_unknown_arguments(manager, plugin)
    try:
        manager.register(plugin, name)
        for hook_name, implementation in implementations(manager, plugin):
            _check_implementation(manager, hook_name, implementation)
        return _collect_executors(manager, plugin)
    except BaseException:
        if manager.get_plugin(name) is plugin:
            manager.unregister(name=name)
        raise


def implementations(manager: pluggy.PluginManager, plugin: Any) -> list[tuple[str, pluggy.HookImpl]]:
    """Return the name and the implementation of each hook that a registered plugin implements."""
    return [
        (caller.name, implementation)
        for caller in manager.get_hookcallers(plugin) or ()
        for implementation in caller.get_hookimpls()
        if implementation.plugin is plugin
    ]


def _refuse_unmarked(manager: pluggy.PluginManager, plugin: Any) -> None:
    # Without the decorator pluggy passes over a hook in silence, and its author wonders why it is never called.
    for hook_name, caller in vars(manager.hook).items():
        if caller.spec is None:  # a name that another plugin got wrong
            continue
        function = _unbound(plugin, hook_name)
        marks = (f"{PROJECT_NAME}_impl", f"{PROJECT_NAME}_spec")
        if inspect.isfunction(function) and not any(hasattr(function, mark) for mark in marks):
            raise PluginError(f"{hook_name} has no decorator and would never be called. Put @hookimpl above it.")


def _refuse_unknown_arguments(manager: pluggy.PluginManager, plugin: Any) -> None:
    # pluggy refuses them as well, without saying what there is and what to do.
    for hook_name, caller in vars(manager.hook).items():
        if caller.spec is None or manager.parse_hookimpl_opts(plugin, hook_name) is None:
            continue
        for parameter in inspect.signature(getattr(plugin, hook_name)).parameters.values():
            is_positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            if is_positional and parameter.default is parameter.empty and parameter.name not in caller.spec.argnames:
                given = ", ".join(caller.spec.argnames) or "nothing"
                near = did_you_mean(parameter.name, caller.spec.argnames)
                raise PluginError(
                    f"{hook_name} takes {parameter.name!r}, and this omni-core gives it: {given}.{near} If a newer one "
                    f"gives it {parameter.name}: pip install --upgrade omni-core, or write {parameter.name}=None to "
                    "run with both."
                )


def _check_implementation(manager: pluggy.PluginManager, hook_name: str, implementation: pluggy.HookImpl) -> None:
    caller: pluggy.HookCaller = getattr(manager.hook, hook_name)
    if caller.spec is None:
        if implementation.optionalhook:
            return
        known = [name for name, other in vars(manager.hook).items() if other.spec is not None]
        raise PluginError(
            f"There is no hook {hook_name!r}.{did_you_mean(hook_name, known)} If a newer omni-core has it: "
            "pip install --upgrade omni-core, or write @hookimpl(optionalhook=True) to run with both."
        )
    function = implementation.function
    if implementation.wrapper or implementation.hookwrapper:
        raise PluginError(f"{hook_name} is a wrapper: each plugin is called by itself here, there is nothing to wrap.")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PluginError(f"{hook_name} is `async def`: hooks are plain functions, nothing would await it.")
    if inspect.isgeneratorfunction(function) and hook_name != "omni_register_executors":
        raise PluginError(f"{hook_name} contains `yield`: calling it would run none of it.")
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise PluginError(f"{hook_name}: pluggy fills no keyword-only arguments. Remove the * before {parameter}.")


def _collect_executors(manager: pluggy.PluginManager, plugin: Any) -> tuple[ExecutorSpec, ...]:
    specs: list[ExecutorSpec] = []
    for hook_name, implementation in implementations(manager, plugin):
        if hook_name == "omni_register_executors":
            answer: Any = implementation.function()
            if isinstance(answer, (str, bytes)) or not isinstance(answer, Iterable):
                raise PluginError(f"omni_register_executors gave {answer!r} where a list of ExecutorSpec is expected.")
            for spec in answer:
                _check_spec(spec, specs)
                if spec.name in core_plugin.NAMES and plugin is not core_plugin:
                    raise PluginError(
                        f"It registers the executor {spec.name!r}, which is a name of omni-core's own: choose another."
                    )
                specs.append(spec)
    return tuple(specs)


def _check_spec(spec: Any, earlier: list[ExecutorSpec]) -> None:
    if not isinstance(spec, ExecutorSpec):
        raise PluginError(f"omni_register_executors gave {spec!r} where an ExecutorSpec is expected.")
    name = spec.name
    if not isinstance(name, str) or not name or ":" in name or any(char.isspace() for char in name):
        raise PluginError(f"{name!r} cannot name an executor: give a word without ':' and spaces.")
    if not is_import_path(spec.target):
        raise PluginError(f"The target {spec.target!r} of executor {name!r} is no import path pkg.mod:Class.")
    if spec.options is not None and not is_import_path(spec.options):
        raise PluginError(f"The options {spec.options!r} of executor {name!r} are no import path pkg.mod:Class.")
    if type(spec.api) is not int or not isinstance(spec.summary, str):
        raise PluginError(f"In the ExecutorSpec {name!r}, api is a whole number and summary is text.")
    if any(other.name == name for other in earlier):
        raise PluginError(f"The plugin registers the executor {name!r} twice.")


def _call_it(plugin: Any) -> str:
    return f"Module {plugin.__name__}" if inspect.ismodule(plugin) else repr(plugin)
