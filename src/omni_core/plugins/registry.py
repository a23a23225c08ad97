"""The plugins of one engine or one process: discovery, hooks, and executors by name."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint
from typing import Any, NamedTuple

import pluggy

from omni_core import hookspecs
from omni_core.errors import OmniError, PluginError, closest
from omni_core.hookspecs import PROJECT_NAME, ExecutorSpec
from omni_core.log import get_logger
from omni_core.plugins import discovery, selection
from omni_core.plugins.records import PluginRecord, describe, normalise
from omni_core.plugins.selection import ResolvedExecutor
from omni_core.validation import described

DISABLE_VARIABLE = "OMNI_PLUGINS_DISABLE"

_log = get_logger(__name__)


class _Call(NamedTuple):
    """One implementation of a hook, ready to be called."""

    plugin: str
    function: Callable[..., object]
    required: tuple[str, ...]
    optional: tuple[str, ...]

    def arguments(self, given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return those of the arguments `given` that the function takes."""
        return [given[name] for name in self.required], {name: given[name] for name in self.optional if name in given}


class PluginRegistry:
    """Finds plugins, each guarded from the others, and calls their hooks.

    Discovery happens here, once. It imports the plugin modules, which are light, and no executor.

    Args:
        entry_points: Where the plugins are. None: those of the group `omni_core` of what is installed.
        disabled: Names of entry points or distributions (or `distribution:entrypoint`) to leave out, not even
            imported. None: those in the environment variable OMNI_PLUGINS_DISABLE, separated by commas.
    """

    def __init__(self, entry_points: Iterable[EntryPoint] | None = None, disabled: Iterable[str] | None = None) -> None:
        self._manager = pluggy.PluginManager(PROJECT_NAME)
        self._manager.add_hookspecs(hookspecs)
        self._records: list[PluginRecord] = []
        self._given_in_code: list[PluginRecord] = []
        # Hook name to implementations, in pluggy's order. Kept, since pluggy's own call costs more than a step allows.
        self._calls: dict[str, tuple[_Call, ...]] = {}
        # (plugin, hook) of the observers whose failure is already in the log with its traceback.
        self._reported: set[tuple[str, str]] = set()
        if disabled is None:
            disabled = os.environ.get(DISABLE_VARIABLE, "")
        if isinstance(disabled, str):
            disabled = disabled.split(",")
        left_out = {normalise(name.strip()) for name in disabled if name.strip()}
        points = discovery.installed_entry_points() if entry_points is None else list(entry_points)
        found = [(*discovery.identity(point), point) for point in points]
        # Sorted, so that hooks are called in one order on every machine.
        found.sort(key=lambda one: (normalise(one[0] or ""), one[2].name))
        for distribution, version, point in found:
            self._records.append(self._discover(point, distribution, version, left_out))
        self._records = _with_conflicts(self._records)
        self._index_hooks()
        _warn_of_near_misses(left_out, self._records)

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """Every plugin that was found, in the order in which it was."""
        return tuple(self._records)

    @property
    def hook(self) -> pluggy.HookRelay:
        """pluggy's relay. The engine uses `notify` and `call_strict` instead, which guard each plugin."""
        return self._manager.hook

    @property
    def executors(self) -> tuple[tuple[PluginRecord, ExecutorSpec], ...]:
        """Each executor that can be selected, with the plugin that offers it."""
        return tuple(selection.usable_executors(self._records))

    def register(self, plugin: Any, name: str | None = None) -> PluginRecord:
        """Add a plugin that is given in code rather than installed.

        Args:
            plugin: A module, or an instance of a class with methods marked `hookimpl`.
            name: What to call it in messages. None: the name of the module or of the class.

        Returns:
            The record, which is also in `records` from now on.

        Raises:
            PluginError: It cannot be used. The cause is chained, and the registry is as it was.
        """
        name = name or getattr(plugin, "__name__", None) or type(plugin).__name__
        value = getattr(plugin, "__name__", None) or f"{type(plugin).__module__}:{type(plugin).__qualname__}"
        record = self._admit(plugin, PluginRecord(name, None, None, value, "active"))
        if record.error is not None:
            raise PluginError(f"Plugin {name!r} cannot be used: {describe(record.error)}") from record.error
        self._records.append(record)
        self._given_in_code.append(record)
        self._index_hooks()
        return record

    def resolve_executor(self, choice: str | type) -> ResolvedExecutor:
        """Import the executor that `executor_class` means. A failed import is tried afresh by the next call.

        Args:
            choice: A registered name, `distribution:name`, an import path `pkg.mod:Class`, or a class.

        Raises:
            ExecutorNotFoundError: Nothing answers to it; the message lists what there is and what to install.
            PluginConflictError: Two distributions register the name.
            PluginVersionError: It was written for another version of the executor contract.
            PluginError: It is disabled, its plugin or its own import failed (the cause is chained), or it is no
                `DiffusionExecutor`.
        """
        return selection.resolve(choice, self._records)

    def notify(self, hook_name: str, /, **kwargs: Any) -> None:
        """Call each implementation of an observer hook. What one raises is logged and goes no further.

        Args:
            hook_name: A hook of hookspecs.py.
            **kwargs: All the arguments of that hook; each implementation gets those that it takes.
        """
        for call in self._calls[hook_name]:
            args, optional = call.arguments(kwargs)
            try:
                call.function(*args, **optional)
            except KeyboardInterrupt:  # the user's, not the plugin's
                raise
            except BaseException:  # SystemExit, or a Rust panic, would end the engine's thread
                self._report(call.plugin, hook_name)

    def call_strict(self, hook_name: str, /, **kwargs: Any) -> None:
        """Call each implementation of a hook whose failure is the caller's: the first that raises ends it.

        Args:
            hook_name: A hook of hookspecs.py.
            **kwargs: All the arguments of that hook; each implementation gets those that it takes.

        Raises:
            OmniError: As the plugin raised it.
            PluginError: The plugin raised anything else, which is chained.
        """
        for call in self._calls[hook_name]:
            _call_guarded(call, hook_name, kwargs)

    def call_first(self, hook_name: str, kind: type, /, **kwargs: Any) -> Any:
        """Call a hook until a plugin returns something.

        Args:
            hook_name: A hook of hookspecs.py.
            kind: What a plugin must return, if not None.
            **kwargs: All the arguments of that hook; each implementation gets those that it takes.

        Returns:
            What the first returned that did not return None; None if all did.

        Raises:
            OmniError: As a plugin raised it.
            PluginError: A plugin raised anything else, which is chained, or returned something of another kind.
        """
        for call in self._calls[hook_name]:
            result = _call_guarded(call, hook_name, kwargs, kind)
            if result is not None:
                return result
        return None

    def call_chain(self, hook_name: str, kind: type, changed: str, /, **kwargs: Any) -> Any:
        """Call a hook whose implementations change one of its arguments one after the other.

        Args:
            hook_name: A hook of hookspecs.py.
            kind: What a plugin must return, if not None.
            changed: The argument that takes what a plugin returned, for the next plugin.
            **kwargs: All the arguments of that hook; each implementation gets those that it takes.

        Returns:
            That argument as the last plugin has left it.

        Raises:
            OmniError: As a plugin raised it.
            PluginError: A plugin raised anything else, which is chained, or returned something of another kind.
        """
        for call in self._calls[hook_name]:
            result = _call_guarded(call, hook_name, kwargs, kind)
            if result is not None:
                kwargs[changed] = result
        return kwargs[changed]

    def has(self, hook_name: str, /) -> bool:
        """Return whether any plugin implements a hook."""
        return bool(self._calls[hook_name])

    def given_in_code(self, hook_name: str, /) -> tuple[str, ...]:
        """Return the names of plugins that implement a hook and were given to `register`: they are here alone."""
        return tuple(record.name for record in self._given_in_code if hook_name in record.hooks)

    def _discover(
        self, point: EntryPoint, distribution: str | None, version: str | None, left_out: set[str]
    ) -> PluginRecord:
        record = PluginRecord(point.name, distribution, version, point.value, "active")
        if not left_out.isdisjoint(_names(record)):
            return dataclasses.replace(record, state="disabled")
        try:
            plugin, warnings = discovery.load(point)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a module may well call sys.exit(), or panic in Rust
            record = dataclasses.replace(record, state="broken", error=error)
        else:
            record = self._admit(plugin, dataclasses.replace(record, warnings=warnings))
        whose = f"Plugin {record.full_name} ({version or 'no version'})"
        if record.error is not None:
            what = "is made for another omni-core" if record.state == "incompatible" else "cannot be used"
            _log.warning(f"{whose} {what} and is left out: {describe(record.error)}")
        for warning in record.warnings:
            _log.warning(f"{whose}: {warning}")
        return record

    def _admit(self, plugin: Any, record: PluginRecord) -> PluginRecord:
        """Register a plugin and return its record completed; in pluggy it is only if it is active."""
        name = record.full_name
        try:
            executors = discovery.admit(self._manager, plugin, name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return dataclasses.replace(record, state="broken", error=error)
        hooks = tuple(sorted({hook for hook, _ in discovery.implementations(self._manager, plugin)}))
        warnings = (*record.warnings, *discovery.advice(self._manager, plugin))
        record = dataclasses.replace(record, executors=executors, hooks=hooks, warnings=warnings)
        if executors and not any(map(selection.speaks, executors)):
            self._manager.unregister(name=name)
            mismatch = selection.version_error(record, executors[0])
            return dataclasses.replace(record, state="incompatible", error=mismatch)
        return record

    def _index_hooks(self) -> None:
        calls: dict[str, tuple[_Call, ...]] = {}
        for hook_name, caller in vars(self._manager.hook).items():
            if caller.spec is not None:
                # pluggy calls the last registered first; it keeps them in the reverse of the order of calls.
                calls[hook_name] = tuple(
                    _Call(one.plugin_name, one.function, tuple(one.argnames), tuple(one.kwargnames))
                    for one in reversed(caller.get_hookimpls())
                )
        self._calls = calls

    def _report(self, plugin: str, hook_name: str) -> None:
        first = (plugin, hook_name) not in self._reported
        self._reported.add((plugin, hook_name))
        # An observer of every step would fill the log with one traceback.
        say = _log.warning if first else _log.debug
        say(f"Plugin {plugin} raised in {hook_name}; nothing else is affected.", exc_info=first)


def _call_guarded(call: _Call, hook_name: str, given: dict[str, Any], kind: type | None = None) -> Any:
    """Return what an implementation of a hook returned: None, or something of `kind`."""
    args, optional = call.arguments(given)
    try:
        result = call.function(*args, **optional)
    except (OmniError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise PluginError(f"Plugin {call.plugin} raised in {hook_name}: {describe(error)}") from error
    if kind is not None and result is not None and not isinstance(result, kind):
        raise PluginError(
            f"Plugin {call.plugin} returned {described(result)} from {hook_name}: it must return None or "
            f"{kind.__name__}."
        )
    return result


def _names(record: PluginRecord) -> set[str]:
    """Return the names by which OMNI_PLUGINS_DISABLE knows a plugin."""
    return {normalise(name) for name in (record.name, record.distribution, record.full_name) if name}


def _with_conflicts(records: list[PluginRecord]) -> list[PluginRecord]:
    """Return the records, with a warning in each whose executor has the name of another's."""
    owners: dict[str, list[PluginRecord]] = {}
    for record, spec in selection.usable_executors(records):
        owners.setdefault(spec.name, []).append(record)
    told = []
    for record in records:
        warnings = [
            f"Its executor {name!r} has the name of that of {' and '.join(o.full_name for o in others)}: write "
            f"executor_class={f'{record.qualifier}:{name}'!r} to mean this one."
            for name, found in owners.items()
            if any(owner is record for owner in found) and (others := [owner for owner in found if owner is not record])
        ]
        told.append(dataclasses.replace(record, warnings=(*record.warnings, *warnings)) if warnings else record)
    return told


def _warn_of_near_misses(left_out: set[str], records: list[PluginRecord]) -> None:
    # A name of something that is not installed here is no mistake: one setting may serve many machines.
    known = {name for record in records for name in _names(record)}
    for name in left_out - known:
        near = closest(name, known)
        if near is not None:
            _log.warning(f"{DISABLE_VARIABLE} names {name!r}, which is no plugin here. Did you mean {near!r}?")


_default: PluginRegistry | None = None
_building = False
# Re-entrant, so that a plugin that asks for the registry while it is imported gets an error instead of a deadlock.
_default_lock = threading.RLock()


def default_registry() -> PluginRegistry:
    """Return the registry of this process, which is built by the first call, from any thread.

    Raises:
        PluginError: A plugin module called this while it was being imported.
    """
    global _default, _building  # noqa: PLW0603
    with _default_lock:
        if _building:
            raise PluginError("A plugin asked for the plugins while they were being found. Do so in a hook instead.")
        if _default is None:
            _building = True
            try:
                _default = PluginRegistry()
            finally:
                _building = False
        return _default
