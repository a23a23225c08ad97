"""Engines that are made where none may be: while a worker is loaded, or while their own factory is imported."""

from __future__ import annotations

import importlib
import runpy
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.engine_place import half_imported
from omni_core.errors import ConfigError, EngineError, ModelLoadError, OmniError
from omni_core.testing.bounds import bounded

FACTORY = """
from omni_core import AsyncDiffusionEngine, DiffusionEngine, OmniDiffusionConfig
from omni_core.testing.pipelines import class_conditional

class Extension:
    def nine(self):
        return 9

def build():
    return class_conditional()

"""
ENGINE = "engine = DiffusionEngine(OmniDiffusionConfig(MODEL))\n"
RUN = (
    "def run():\n    global engine\n    try:\n        "
    + ENGINE
    + "    except Exception as error:\n        raised.append(error)\n"
)
WAYS = {
    "in the body": ENGINE,
    "in a function": "def run():\n    return DiffusionEngine(OmniDiffusionConfig(MODEL))\nengine = run()\n",
    "in a thread": "import threading\nraised = []\n"
    + RUN
    + "thread = threading.Thread(target=run)\nthread.start()\nthread.join()\nif raised:\n    raise raised[0]\n",
    "asyncio": "import asyncio\nengine = asyncio.run(AsyncDiffusionEngine.create(OmniDiffusionConfig(MODEL)))\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        module = sys.modules[name]
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            engine = getattr(module, "engine", None)
            if engine is not None:
                engine.close()
            del sys.modules[name]


def write(folder: Path, name: str, text: str, model: str = "") -> Path:
    file = folder / f"{name}.py"
    file.write_text(text.replace("MODEL", model))
    importlib.invalidate_caches()
    return file


def error_of(action: Any, *args: Any) -> OmniError:
    def run() -> OmniError:
        with pytest.raises(OmniError) as raised:
            action(*args)
        return raised.value

    return bounded(run, "making the engine", 30.0)


def assert_serves(**fields: Any) -> None:
    def serve() -> None:
        with DiffusionEngine(OmniDiffusionConfig(**fields)) as engine:
            request = OmniDiffusionRequest(num_inference_steps=2, extra_args={"class_labels": [1]})
            engine.step([request], timeout=60)[0].raise_for_error()

    bounded(serve, "serving", 90.0)


@pytest.mark.parametrize("way", WAYS)
def test_a_module_that_makes_an_engine_with_its_own_factory(way: str, folder: Path) -> None:
    write(folder, "own_factory", FACTORY + WAYS[way], 'model="own_factory:build"')
    error = error_of(importlib.import_module, "own_factory")
    assert isinstance(error, EngineError)
    assert "own_factory:build" in error.message
    assert 'if __name__ == "__main__"' in error.message


@pytest.mark.parametrize("way", WAYS)
def test_a_script_that_names_its_own_file(way: str, folder: Path) -> None:
    file = write(folder, "own_script", FACTORY + WAYS[way], 'model="own_script:build"')
    error = error_of(lambda: runpy.run_path(str(file), run_name="__main__"))
    assert isinstance(error, ModelLoadError)
    assert f"{file}" in error.message, "it says where"
    assert 'if __name__ == "__main__"' in error.message


def test_the_message_names_the_line(folder: Path) -> None:
    file = write(folder, "own_script", FACTORY + ENGINE, 'model="own_script:build"')
    error = error_of(lambda: runpy.run_path(str(file), run_name="__main__"))
    line = file.read_text().splitlines().index(ENGINE.replace("MODEL", 'model="own_script:build"').strip()) + 1
    assert f"in line {line} of {file}" in error.message


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_late", [False, True], ids=["at its top", "when it is called"])
def test_a_factory_that_imports_the_module_that_makes_the_engine(is_late: bool, way: str, folder: Path) -> None:
    importing = (
        "def build():\n    import around\n    return around.build()\n" if is_late else "from around import build\n"
    )
    write(folder, "factories", importing)
    write(folder, "around", FACTORY + WAYS[way], 'model="factories:build"')
    error = error_of(importlib.import_module, "around")
    assert "each waits for the other" in error.message
    assert "'around'" in error.message


def test_an_engine_of_another_model_in_the_factorys_module(folder: Path) -> None:
    write(folder, "two_engines", FACTORY + ENGINE, "")
    error = error_of(DiffusionEngine, OmniDiffusionConfig(model="two_engines:build"))
    assert "two_engines:build" in error.message


def test_a_factory_that_makes_an_engine(folder: Path) -> None:
    write(
        folder,
        "recursive",
        FACTORY.replace("return class", ENGINE.strip() + "\n    return class"),
        'model="recursive:build"',
    )
    error = error_of(DiffusionEngine, OmniDiffusionConfig(model="recursive:build"))
    assert "recursive:build" in error.message
    assert "without end" in error.message


@pytest.mark.parametrize("is_script", [True, False])
def test_an_extension_in_the_module_that_makes_the_engine(is_script: bool, folder: Path) -> None:
    file = write(folder, "extended", FACTORY + ENGINE, 'worker_extension_cls="extended:Extension"')
    if is_script:
        error = error_of(lambda: runpy.run_path(str(file), run_name="__main__"))
        assert isinstance(error, ConfigError)
    else:
        error = error_of(importlib.import_module, "extended")
        assert isinstance(error, EngineError)
    assert "worker_extension_cls = 'extended:Extension'" in error.message


def test_what_is_right_works(folder: Path) -> None:
    write(folder, "guarded", FACTORY + 'if __name__ == "__main__":\n    ' + ENGINE, 'model="guarded:build"')
    write(folder, "in_a_body", FACTORY + ENGINE, 'model="guarded:build"')
    bounded(lambda: importlib.import_module("in_a_body"), "importing", 60.0)
    assert_serves(model="guarded:build")
    assert half_imported() == frozenset()


def test_a_callable(folder: Path) -> None:
    write(folder, "guarded", FACTORY)
    build = importlib.import_module("guarded").build
    assert OmniDiffusionConfig(model=build).model == "guarded:build"
    assert_serves(model=build)
    with pytest.raises(ConfigError, match="at the top of a module"):
        OmniDiffusionConfig(model=lambda: None)


def test_two_threads_make_engines_of_one_factory_that_is_imported_slowly(folder: Path) -> None:
    write(folder, "slow", FACTORY + "import slow_gate\nslow_gate.opened.wait(30.0)\n")
    write(folder, "slow_gate", "import threading\nopened = threading.Event()\n")
    gate = importlib.import_module("slow_gate")
    started = threading.Barrier(3)

    def serve() -> None:
        started.wait(30.0)
        assert_serves(model="slow:build")

    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(serve) for _ in range(2)]
        started.wait(30.0)
        gate.opened.set()
        for one in done:
            one.result(90.0)
