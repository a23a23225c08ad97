"""The configuration, the plugins and the executor that is selected."""

from __future__ import annotations

from collections.abc import Iterator

from omni_core.cli.checks.finding import Finding
from omni_core.config import OmniDiffusionConfig, unknown_environment
from omni_core.errors import OmniError
from omni_core.plugins import PluginRecord, PluginRegistry


def check_environment() -> Iterator[Finding]:
    """Look for OMNI_* variables that mean nothing."""
    for name in unknown_environment():
        yield Finding("environment", "warning", f"{name} means nothing to omni", f"Unset {name} unless it is another's")


def check_plugins(plugins: PluginRegistry) -> Iterator[Finding]:
    """Look for plugins that cannot be used, and for executors of one name."""
    if not plugins.records:
        yield Finding(
            "plugins", "problem", "none was found, not even omni-core's own", "pip install --force-reinstall omni-core"
        )
    for record in plugins.records:
        yield _plugin(record)
    owners: dict[str, list[PluginRecord]] = {}
    for record, spec in plugins.executors:
        owners.setdefault(spec.name, []).append(record)
    for name, records in owners.items():
        if len(records) > 1:
            ways = " or ".join(f"{record.qualifier}:{name}" for record in records)
            yield Finding(
                "plugins",
                "warning",
                f"the executor {name!r} is registered by {' and by '.join(record.qualifier for record in records)}",
                f"Uninstall one of them, or say which one is meant: executor_class = {ways}",
            )


def check_executor(config: OmniDiffusionConfig, plugins: PluginRegistry) -> Finding:
    """Look whether the executor that is selected can be imported."""
    choice = config.executor_class
    try:
        resolved = plugins.resolve_executor(choice)
    except OmniError as error:
        return Finding("executor", "problem", error.message, "Choose one of `omni plugins` for executor_class")
    return Finding("executor", "ok", f"{resolved.name} ({resolved.cls.__module__}:{resolved.cls.__qualname__})")


def _plugin(record: PluginRecord) -> Finding:
    name = f"plugin {record.full_name}"
    version = record.version or "(no version)"
    if record.state == "active":
        return Finding(name, "ok", version)
    if record.state == "disabled":
        return Finding(name, "ok", f"{version}, left out by OMNI_PLUGINS_DISABLE")
    cause = record.to_dict()["error"]
    upgrade = f"pip install --upgrade {record.distribution}" if record.distribution else "Correct it"
    leave_out = f", or leave it out: OMNI_PLUGINS_DISABLE={record.name}"
    return Finding(name, "warning", f"{version} is {record.state}: {cause}", upgrade + leave_out)
