"""What omni-core and the plugins require, against what is installed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from omni_core.cli.checks.finding import Finding, State
from omni_core.cli.checks.software import DISTRIBUTION, installed_version, try_import
from omni_core.hookspecs import ENTRY_POINT_GROUP
from omni_core.plugins.records import normalise

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def check_requirements() -> Iterator[Finding]:
    """Follow the requirements of omni-core and of the plugins through all that is installed."""
    try:
        importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            DISTRIBUTION,
            "problem",
            "not installed as a distribution, so that no plugin, not even its own, is found",
            f"`pip install {DISTRIBUTION}`, or in the repository `pip install -e .`",
        )
    else:
        yield Finding(DISTRIBUTION, "ok", installed_version(DISTRIBUTION))
    packaging, _ = try_import("packaging.requirements")
    if packaging is None:  # it comes with huggingface_hub, whose absence is told with the software
        return
    ours = {normalise(name): name for name in (DISTRIBUTION, *_plugin_distributions())}
    waiting = [(name, "") for name in ours.values()]
    seen: set[tuple[str, str]] = set()
    conflicts: dict[Finding, None] = {}
    while waiting:
        owner, extra = waiting.pop()
        if (normalise(owner), extra) in seen:
            continue
        seen.add((normalise(owner), extra))
        for requirement in _requirements(packaging, owner, extra):
            # Further down it may well work all the same: those packages are also imported, to see.
            conflict = _conflict(requirement, owner, "problem" if normalise(owner) in ours else "warning")
            if conflict is not None:
                conflicts[conflict] = None
            else:
                waiting.extend((requirement.name, wanted) for wanted in ("", *requirement.extras))
    yield from conflicts


def _plugin_distributions() -> list[str]:
    try:
        points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        return sorted({point.dist.name for point in points if point.dist is not None})
    except Exception:  # metadata of some distribution that cannot be read; the plugins of it are told as broken
        return []


def _requirements(packaging: Any, owner: str, extra: str) -> Iterator[Requirement]:
    try:
        lines = importlib.metadata.requires(owner) or []
    except Exception:  # not there, or its metadata cannot be read
        return
    for line in lines:
        try:
            requirement: Requirement = packaging.Requirement(line)
        except packaging.InvalidRequirement:  # of old releases of others, which pip ignores too
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def _conflict(requirement: Requirement, owner: str, state: State) -> Finding | None:
    name, specifier = requirement.name, requirement.specifier
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, state, f"not installed; {owner} requires it", f"`pip install '{name}{specifier}'`")
    if specifier.contains(version, prereleases=True):
        return None
    detail = f"{version} is installed; {owner} {installed_version(owner)} requires {specifier}"
    if normalise(name) == DISTRIBUTION and not _wants_newer(requirement, version):
        return Finding(name, state, f"{detail}: that plugin is too old", f"`pip install --upgrade {owner}`")
    return Finding(name, state, detail, f"`pip install --upgrade '{name}{specifier}'`")


def _wants_newer(requirement: Requirement, version: str) -> bool:
    return any(one.operator in (">", ">=") and not one.contains(version, True) for one in requirement.specifier)
