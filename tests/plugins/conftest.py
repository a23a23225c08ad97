"""Distributions made of small files, as an installer leaves them behind."""

from __future__ import annotations

import logging
import sys
import textwrap
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import Any

import pytest

from omni_core.plugins import PluginRegistry

EXECUTOR = """
from omni_core.executor import DiffusionExecutor

class {name}(DiffusionExecutor):
    def _init_executor(self): pass
    def collective_rpc(self, method, timeout=None, args=(), kwargs=None, unique_reply_rank=None): return []
    def execute_model(self, requests): return []
    def check_health(self): pass
    def shutdown(self): pass
"""
HEADER = "from omni_core.hookspecs import ExecutorSpec, hookimpl\n"


class World:
    """A folder on sys.path into which distributions are put."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entry_points: list[EntryPoint] = []

    @staticmethod
    def executor(name: str) -> str:
        """Source of an executor class that does nothing."""
        return EXECUTOR.format(name=name)

    @staticmethod
    def hooks(source: str) -> str:
        """Source of a plugin module with these hooks."""
        return HEADER + textwrap.dedent(source)

    @classmethod
    def offering(cls, *specs: str) -> str:
        """Source of a plugin module that registers ExecutorSpecs, each given by its arguments."""
        listed = ", ".join(f"ExecutorSpec({spec})" for spec in specs)
        return cls.hooks(f"@hookimpl\ndef omni_register_executors():\n    return [{listed}]\n")

    def module(self, name: str, source: str) -> None:
        path = self.folder.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))

    def install(
        self, distribution: str, *, version: str = "1.0", points: dict[str, str] | None = None, **modules: str
    ) -> None:
        """Put a distribution there. Its modules are given by name; each is a plugin unless `points` says otherwise."""
        for name, source in modules.items():
            self.module(name, source)
        if points is None:
            points = {name.removeprefix("plug_"): name for name in modules}
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        info.joinpath("entry_points.txt").write_text(f"[omni_core]\n{lines}")
        self.entry_points += Distribution.at(info).entry_points

    def registry(self, disabled: tuple[str, ...] | str | None = ()) -> PluginRegistry:
        return PluginRegistry(self.entry_points, disabled=disabled)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield World(folder)
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class Log(logging.Handler):
    """What a logger of omni was told: the events of structlog."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.events: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        trace = {"exception": logging.Formatter().formatException(record.exc_info)} if record.exc_info else {}
        self.events.append({**record.omni, **trace, "level": record.levelname.lower()})

    def at(self, level: str) -> list[str]:
        return [event["event"] for event in self.events if event["level"] == level]


@pytest.fixture
def log():
    logger = logging.getLogger("omni_core.plugins.registry")
    handler, level = Log(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
