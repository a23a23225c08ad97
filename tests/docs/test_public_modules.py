"""What plugins may import: the page for authors and the contract of import-linter say the same."""

from __future__ import annotations

import pkgutil
import re
import sys
from pathlib import Path

import omni_core

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def modules() -> set[str]:
    return {"omni_core", *(one.name for one in pkgutil.walk_packages(omni_core.__path__, "omni_core."))}


def below(name: str, names: set[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in names)


def test_each_module_is_public_or_refused_to_plugins() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [contract] = [one for one in contracts if one["name"] == "plugins import public modules alone"]
    refused = set(contract["forbidden_modules"])
    page = (ROOT / "docs" / "PLUGIN_AUTHORS.md").read_text()
    table = page[page.index("Public are the names") : page.index("## Publishing")]
    public = set(re.findall(r"`(omni_core[a-z_.]*)`", table))
    every = modules()
    assert public <= every
    assert refused <= every
    assert not public & refused
    packages = {
        "omni_core",
        "omni_core.cli",
        "omni_core.worker",
        "omni_core.worker.pipeline",
        "omni_core.worker.parallel",
    }
    undecided = {
        name
        for name in every - packages - {"omni_core.__main__"}
        if not below(name, refused) and not below(name, public - {"omni_core"})
    }
    assert undecided == set(), "add each to the page or to the contract"
