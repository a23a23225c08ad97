"""The plugins: those that cannot be used, and executors of one name."""

from __future__ import annotations

from collections.abc import Iterator

from omni_core.cli.checks.cures import set_field
from omni_core.cli.checks.finding import Finding
from omni_core.config import OmniDiffusionConfig
from omni_core.hookspecs import API_VERSION
from omni_core.plugins import PluginRecord, PluginRegistry


def check_plugins(plugins: PluginRegistry, config: OmniDiffusionConfig | None = None) -> Iterator[Finding]:
    """Look for plugins that cannot be used, and for executors of one name.

    Args:
        plugins: The plugins.
        config: The configuration, which may say which of two executors is meant.
    """
    chosen = str(config.executor_class) if config is not None else ""
    if not plugins.records:
        yield Finding(
            "plugins",
            "problem",
            "none was found, not even omni-core's own",
            "`pip install --force-reinstall omni-core`",
        )
    for record in plugins.records:
        yield _plugin(record)
    owners: dict[str, list[PluginRecord]] = {}
    for record, spec in plugins.executors:
        owners.setdefault(spec.name, []).append(record)
    for name, records in owners.items():
        if len(records) > 1 and not chosen.endswith(f":{name}"):
            ways = " or ".join(set_field("executor_class", f"{one.qualifier}:{name}", config) for one in records)
            yield Finding(
                "plugins",
                "warning",
                f"the executor {name!r} is registered by {' and by '.join(record.qualifier for record in records)}",
                f"Uninstall one of them, or say which one is meant: {ways}",
            )


def _plugin(record: PluginRecord) -> Finding:
    name = f"plugin {record.full_name}"
    version = record.version or "(no version)"
    if record.state == "active":
        return Finding(name, "ok", version)
    if record.state == "disabled":
        return Finding(name, "ok", f"{version}, left out by OMNI_PLUGINS_DISABLE")
    cause = record.to_dict()["error"]
    leave_out = f"or leave it out: `export OMNI_PLUGINS_DISABLE={record.full_name}`"
    return Finding(name, "warning", f"{version} is {record.state}: {cause}", f"{_upgrade(record)}, {leave_out}")


def _upgrade(record: PluginRecord) -> str:
    if record.state == "incompatible" and all(spec.api > API_VERSION for spec in record.executors):
        return "`pip install --upgrade omni-core`"
    if record.distribution is None:
        return "Correct it"
    return f"`pip install --upgrade {record.distribution}`"
