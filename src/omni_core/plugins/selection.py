"""From what `executor_class` says to the class. The one place where an executor's own modules are imported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from omni_core.errors import (
    ConfigError,
    ExecutorNotFoundError,
    OmniError,
    PluginConflictError,
    PluginError,
    PluginVersionError,
    closest,
    did_you_mean,
)
from omni_core.hookspecs import API_VERSION, OLDEST_API_VERSION, ExecutorSpec
from omni_core.plugins.executor_class import check_executor_class
from omni_core.plugins.records import PluginRecord, describe, is_import_path, normalise

if TYPE_CHECKING:
    import pydantic

    from omni_core.executor import DiffusionExecutor

# By convention the executor NAME comes in the distribution omni-exec-NAME.
DISTRIBUTION_PREFIX = "omni-exec-"
# Executors whose distributions there are, so that they can be named to somebody who has not installed them.
PUBLISHED = ("multiproc", "torchrun")

Offer = tuple[PluginRecord, ExecutorSpec]


@dataclass(frozen=True, slots=True)
class ResolvedExecutor:
    """The executor that a configuration means.

    Attributes:
        cls: The class.
        options: The model of its `executor_options`. None: it takes none.
        spec: What a plugin registered. None: the class was given itself, or by an import path nobody registered.
        distribution: The distribution of that plugin.
        name: What to call it in messages: its registered name or its import path.
    """

    cls: type[DiffusionExecutor]
    options: type[pydantic.BaseModel] | None
    spec: ExecutorSpec | None
    distribution: str | None
    name: str

    def validate_options(self, values: Mapping[str, Any]) -> Any:
        """Return `executor_options` as an instance of the executor's model; None if it takes none.

        Raises:
            ConfigError: They do not fit it.
            PluginError: The model itself raised anything but what pydantic does.
        """
        if self.options is None:
            if values:
                raise ConfigError(
                    f"The executor {self.name} takes no options, but executor_options sets {', '.join(values)}."
                )
            return None
        import pydantic

        from omni_core.validation import explain

        try:
            return self.options(**values)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(error, f"executor_options of {self.name}", self.options.model_fields)) from error
        except OmniError:
            raise
        except Exception as error:
            model = f"{self.options.__module__}:{self.options.__qualname__}"
            raise PluginError(
                f"The options model {model} of the executor {self.name} raised {describe(error)}. A model says what is "
                "wrong with a value by ValueError."
            ) from error


def published(name: str) -> str | None:
    """Return the distribution of an executor that is known to be published; None for any other word."""
    plain = normalise(name).removeprefix(DISTRIBUTION_PREFIX)
    return f"{DISTRIBUTION_PREFIX}{plain}" if plain in PUBLISHED else None


def speaks(spec: ExecutorSpec) -> bool:
    """Return whether an executor is written for a version of the contract that this core speaks."""
    return OLDEST_API_VERSION <= spec.api <= API_VERSION


def usable_executors(records: Sequence[PluginRecord]) -> list[Offer]:
    """Return each executor of an active plugin that fits this core's version of the contract."""
    return [
        (record, spec) for record in records if record.state == "active" for spec in record.executors if speaks(spec)
    ]


def version_error(record: PluginRecord, spec: ExecutorSpec) -> PluginVersionError:
    """Return the error for an executor of another contract version. It tells which side to upgrade."""
    if spec.api > API_VERSION:
        advice = "This core is too old for it: pip install --upgrade omni-core"
    elif record.distribution is not None:
        advice = f"The plugin is too old for this core: pip install --upgrade {record.distribution}"
    else:
        advice = "The plugin is too old for this core: bring it up to date."
    only_one = OLDEST_API_VERSION == API_VERSION
    spoken = f"version {API_VERSION}" if only_one else f"versions {OLDEST_API_VERSION} to {API_VERSION}"
    return PluginVersionError(
        f"The executor {spec.name!r} of {_whose(record)} is written for version {spec.api} of the executor contract, "
        f"and this omni-core speaks {spoken}. {advice}"
    )


def resolve(choice: str | type, records: Sequence[PluginRecord]) -> ResolvedExecutor:
    """Find and import the executor that is meant. `PluginRegistry.resolve_executor` tells what is raised."""
    if isinstance(choice, type):
        return _describe_class(choice, records, f"{choice.__module__}:{choice.__qualname__}")
    if not isinstance(choice, str) or not choice.strip():
        raise ExecutorNotFoundError(
            f"executor_class is {choice!r}: give a registered name, an import path pkg.mod:Class, or a class."
        )
    choice = choice.strip()
    distribution, _, name = choice.rpartition(":")
    offers = [
        (record, spec)
        for record in records
        for spec in record.executors
        if spec.name == name and (not distribution or normalise(distribution) == normalise(record.qualifier))
    ]
    usable = [(record, spec) for record, spec in usable_executors(records) if (record, spec) in offers]
    if len(usable) > 1:
        raise _conflict(name, usable)
    if usable:
        return _import_registered(*usable[0])
    if offers:
        raise version_error(*offers[0])
    for record in records:
        if record.state in ("broken", "disabled") and _may_mean(record, distribution, name):
            _refuse_unavailable(choice, record)
    if is_import_path(choice):
        return _describe_class(_import_object(choice, _near_registered(choice, records)), records, choice)
    raise _not_found(choice, records)


def _import_registered(record: PluginRecord, spec: ExecutorSpec) -> ResolvedExecutor:
    whose = f" It is the executor {spec.name!r} of {_whose(record)}."
    cls = _import_object(spec.target, whose)
    check_executor_class(cls, spec.target, whose)
    return ResolvedExecutor(cls, _options_of(spec, whose), spec, record.distribution, spec.name)


def _describe_class(found: Any, records: Sequence[PluginRecord], display: str) -> ResolvedExecutor:
    """Return a class that was given itself or by its path, with the options that its plugin registered, if one did."""
    check_executor_class(found, display)
    cls: type[DiffusionExecutor] = found
    own_path = f"{cls.__module__}:{cls.__qualname__}"
    for record, spec in usable_executors(records):
        if spec.target in (own_path, display):
            options = _options_of(spec, f" They belong to the executor {spec.name!r} of {_whose(record)}.")
            return ResolvedExecutor(cls, options, spec, record.distribution, display)
    return ResolvedExecutor(cls, None, None, None, display)


def _options_of(spec: ExecutorSpec, whose: str) -> type[pydantic.BaseModel] | None:
    if spec.options is None:
        return None
    import pydantic

    model = _import_object(spec.options, whose)
    if not (isinstance(model, type) and issubclass(model, pydantic.BaseModel)):
        raise PluginError(f"The options {spec.options} are no pydantic model.{whose}")
    return model


def _import_object(path: str, hint: str) -> Any:
    """Import what `pkg.mod:name` names; `hint` ends the message of an error."""
    module_name, _, qualname = path.partition(":")
    found: Any = _import_module(module_name, path, hint)
    for part in qualname.split("."):
        owner = found
        try:
            found = getattr(owner, part)
        except AttributeError as error:
            place = f"module {module_name}" if owner.__class__.__name__ == "module" else repr(owner)
            near = did_you_mean(part, (name for name in dir(owner) if not name.startswith("_")))
            raise ExecutorNotFoundError(f"{path} cannot be imported: {place} has no {part!r}.{near}{hint}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a lazy module imports the rest of itself here
            raise PluginError(f"{path} cannot be imported: {describe(error).rstrip('.')}.{hint}") from error
    return found


def _import_module(name: str, path: str, hint: str) -> Any:
    importlib.invalidate_caches()  # it may have been installed since the last attempt
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ExecutorNotFoundError(
                f"{path} cannot be imported: there is no module {error.name!r}.{hint}"
            ) from error
        if error.name is not None and error.name.startswith("omni_core."):
            raise PluginError(
                f"{path} cannot be imported: this omni-core has no module {error.name!r}; it was written for another "
                f"version. Upgrade it, or install the version of omni-core that it asks for.{hint}"
            ) from error
        raise PluginError(
            f"{path} cannot be imported: it needs the module {error.name!r}, which is not installed. "
            f"Install the package that provides it.{hint}"
        ) from error
    except BaseException as error:  # SystemExit at import, or a Rust panic
        raise PluginError(
            f"{path} cannot be imported: its module raised {describe(error).rstrip('.')}.{hint}"
        ) from error


def _may_mean(record: PluginRecord, distribution: str, name: str) -> bool:
    """Return whether a plugin, of which no executors are known, is likely the one with the executor `name`."""
    plugin, qualifier, wanted = normalise(record.name), normalise(record.qualifier), normalise(name)
    if not distribution:
        return wanted in (plugin, qualifier, qualifier.removeprefix(DISTRIBUTION_PREFIX))
    if normalise(distribution) != qualifier:
        return False
    # `acme:Executor` may as well be a class in a module called like the distribution: then the import decides.
    return wanted == plugin or not is_import_path(f"{distribution}:{name}")


def _refuse_unavailable(choice: str, record: PluginRecord) -> NoReturn:
    if record.state == "disabled":
        raise PluginError(
            f"The executor {choice!r} is not available: OMNI_PLUGINS_DISABLE leaves out the plugin {record.name!r} of "
            f"{_whose(record)}. Remove it from that variable to use it."
        )
    assert record.error is not None
    raise PluginError(
        f"The executor {choice!r} is not available: the plugin {record.name!r} of {_whose(record)} is broken: "
        f"{describe(record.error)}"
    ) from record.error


def _conflict(name: str, offers: Sequence[Offer]) -> PluginConflictError:
    whose = " and by ".join(_whose(record) for record, _ in offers)
    ways = [f"{record.qualifier}:{name}" for record, _ in offers]
    if len({normalise(way) for way in ways}) < len(ways):  # two plugins of one distribution: only the path differs
        ways = [spec.target for _, spec in offers]
    choices = " or ".join(f"executor_class={way!r}" for way in ways)
    return PluginConflictError(f"The executor {name!r} is registered by {whose}. Say which one is meant: {choices}.")


def _not_found(choice: str, records: Sequence[PluginRecord]) -> ExecutorNotFoundError:
    distribution, colon, name = choice.rpartition(":")
    usable = usable_executors(records)
    names = sorted({spec.name for _, spec in usable})
    qualified = [f"{record.qualifier}:{spec.name}" for record, spec in usable]
    missing = None if colon else _not_installed(choice, names)
    known = qualified if colon else [*names, *([] if published(choice) else PUBLISHED)]
    says = [f"There is no executor {choice!r}.{did_you_mean(choice, known)}"]
    if not records:
        says.append("No plugin was found at all, not even omni-core's own: install omni-core with pip.")
    elif colon and not any(normalise(record.qualifier) == normalise(distribution) for record in records):
        says.append(f"No plugin comes from a distribution {distribution!r}.")
    says.append(f"Executors here: {', '.join(qualified if colon else names) or 'none'}.")
    if not colon and "." in name and is_import_path(f"{name}:x"):
        says.append(f"An import path is written with a colon: executor_class={':'.join(name.rsplit('.', 1))!r}.")
    elif missing is not None:
        says.append(f"It is a plugin that is not installed: pip install {missing}")
    left_out = [f"{record.full_name} ({record.state})" for record in records if record.state != "active"]
    if left_out:
        says.append(f"Plugins that cannot be used: {', '.join(left_out)}; `omni plugins` says why.")
    return ExecutorNotFoundError(" ".join(says))


def _not_installed(choice: str, names: Sequence[str]) -> str | None:
    """Return the distribution of the published executor that is meant, or likely so; None if it is not that."""
    if published(choice):
        # In another spelling it may be here, and is proposed then.
        return None if normalise(choice) in map(normalise, names) else published(choice)
    near = closest(choice, [*names, *PUBLISHED])
    return published(near) if near is not None and near not in names else None


def _near_registered(choice: str, records: Sequence[PluginRecord]) -> str:
    """Return a hint for `distribution:name` with a misspelled name, which reads as an import path."""
    distribution, _, _ = choice.partition(":")
    known = [
        f"{record.qualifier}:{spec.name}"
        for record, spec in usable_executors(records)
        if normalise(record.qualifier) == normalise(distribution)
    ]
    return f" The distribution {distribution} offers: {', '.join(known)}." if known else ""


def _whose(record: PluginRecord) -> str:
    if record.distribution is None:
        return f"the plugin {record.name!r} registered in code"
    return f"distribution {record.distribution} {record.version or '(no version)'}"
