"""What `omni plugins new` writes, really installed with pip, checked and used as its author would."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.install, pytest.mark.timeout(900)]

CHECKOUT = Path(__file__).parents[2]
# All are installed side by side, so each has a name of its own.
NAMES = {"executor": "acme", "observer": "watcher", "pipeline-hook": "shifter"}
# The suite is run by `omni plugins check`; here the own session shows that it finds it.
SOME_TESTS = ["-k", "not TestAcmeExecutor or equal_to_the_bare or abort"]


@dataclass
class Site:
    """A fresh environment, and the empty folder in which the author works.

    Attributes:
        folder: The folder.
        bin: Where the programs of the environment are.
        env: The environment variables of an author who has activated it.
    """

    folder: Path
    bin: Path
    env: dict[str, str]

    def run(self, *command: str | Path, cwd: Path | None = None, seconds: float = 120, **env: str) -> str:
        """Run a command, which must succeed, and return what it printed."""
        done = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def line(self, command: str, seconds: float = 120) -> str:
        """Run a line that was printed to be copied."""
        if command.startswith("pip install "):
            # pip would fetch the build back end. That of the running environment does, so that no network is needed.
            command = command.replace("pip install ", "pip install --no-index --no-build-isolation ", 1)
        return self.run("bash", "-c", command, seconds=seconds)

    def new(self, name: str, *arguments: str) -> list[str]:
        """Run `omni plugins new` and return the commands that it prints."""
        return [line.strip() for line in self.run("omni", "plugins", "new", name, *arguments).splitlines()[2:]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """One environment for all tests of this module.

    omni-core is built and installed into it as users get it. Torch and the other dependencies, a gigabyte, are not:
    they are seen through a .pth file in the environment that runs the tests. `addsitedir`, and not its path alone, so
    that .pth files there count as well.
    """
    root = tmp_path_factory.mktemp("author")
    subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True, timeout=120)
    scripts = root / "venv" / "bin"
    [packages] = (root / "venv" / "lib").glob("python*/site-packages")
    outer = sysconfig.get_path("purelib")
    (packages / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n", encoding="utf-8")
    ours = ("OMNI_", "PYTHON", "PYTEST", "PIP_", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {"PATH": f"{scripts}{os.pathsep}{env['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    folder = root / "work"
    folder.mkdir()
    site = Site(folder, scripts, env)
    # Before Python 3.12 venv brings an old setuptools, which would hide the newer one that torch asks for.
    site.run("pip", "uninstall", "--yes", "setuptools")
    site.run("pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall", str(CHECKOUT))
    used = site.run("python", "-c", "import omni_core; print(omni_core.__file__)").strip()
    assert Path(used).is_relative_to(packages), "the templates must come out of the wheel"
    return site


@pytest.fixture(scope="module")
def commands(site: Site) -> dict[str, list[str]]:
    """Every kind, written and installed; the commands that were printed for it."""
    printed = {kind: site.new(name, "--kind", kind) for kind, name in NAMES.items()}
    for install, *_ in printed.values():
        site.line(install)
    return printed


class Session:
    """What a noxfile gets for a session; the environment is there already, and what is run is run in it."""

    def __init__(self, site: Site, folder: Path, posargs: list[str]) -> None:
        self.site = site
        self.folder = folder
        self.posargs = posargs
        self.installed: list[str] = []
        self.ran: list[str] = []

    def install(self, *arguments: str) -> None:
        self.installed += arguments

    def run(self, program: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.ran.append(program)
        # ruff is a binary that serves every environment; the others are Python, and must be that of the fresh one.
        outer = Path(sysconfig.get_path("scripts"))
        command = [outer / program] if program == "ruff" else [self.site.bin / "python", "-m", program]
        self.site.run(*command, *arguments, cwd=self.folder, seconds=600, **(env or {}))


def sessions_of(noxfile: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[Session], None]]:
    """Return the sessions of a noxfile, without nox, which would make an environment with torch for each."""
    found: dict[str, Callable[[Session], None]] = {}
    nox = types.ModuleType("nox")
    nox.options = types.SimpleNamespace()
    nox.session = lambda function: found.setdefault(function.__name__, function)
    monkeypatch.setitem(sys.modules, "nox", nox)
    spec = importlib.util.spec_from_file_location("generated_noxfile", noxfile)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert nox.options.sessions == list(found)
    return found


# Lint and format of all kinds are tested by day in test_plugins_new.py, and the commands of all kinds below.
@pytest.mark.parametrize(
    "kind", ["executor", *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ("observer", "pipeline-hook"))]
)
def test_its_own_checks_and_tests_pass(site, commands, kind, monkeypatch):
    folder = site.folder / ("omni-exec-acme" if kind == "executor" else f"omni-{NAMES[kind]}")
    sessions = sessions_of(folder / "noxfile.py", monkeypatch)
    check = Session(site, folder, [])
    sessions["check"](check)
    assert (check.installed, check.ran) == (["-e", ".[dev]"], ["ruff", "ruff", "mypy"])
    # The extra that the session installs is met by what is there.
    site.run("pip", "install", "--no-index", "--no-build-isolation", "-e", ".[dev]", cwd=folder)
    tests = Session(site, folder, SOME_TESTS if kind == "executor" else [])
    sessions["tests"](tests)
    assert (tests.installed, tests.ran) == ([".[test]"], ["pytest"])


@pytest.mark.parametrize("kind", NAMES)
def test_a_wheel_has_all_of_it(site, commands, kind, tmp_path):
    name = f"exec_{NAMES[kind]}" if kind == "executor" else NAMES[kind]
    folder = site.folder / f"omni-{name.replace('_', '-')}"
    site.run("pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", tmp_path, folder)
    [wheel] = tmp_path.iterdir()
    listed = site.run("python", "-m", "zipfile", "-l", wheel)
    assert wheel.name == f"omni_{name}-0.1.0-py3-none-any.whl"
    for file in (folder / "src" / f"omni_{name}").glob("*.*"):
        assert f"omni_{name}/{file.name} " in listed
    assert "licenses/LICENSE" in listed
    assert "entry_points.txt" in listed


def test_four_commands_from_an_empty_folder_to_a_picture(site, commands, request):
    # The first two, `omni plugins new` and `pip install`, are what `commands` ran.
    _, check, generate = commands["executor"]
    assert check == "omni plugins check acme"
    assert generate == 'omni generate "a blue two" --executor-class acme'
    if not request.config.getoption("--nightly"):
        check += " --only test_starts_serves_and_is_healthy"
    said = site.line(check, seconds=800)
    assert "acme conforms: " in said
    site.line(generate)
    [picture] = site.folder.glob("a-blue-two-*.png")
    seed = picture.stem.rpartition("-")[2]
    site.run("omni", "generate", "a blue two", "--executor-class", "inline", "--seed", seed, "-o", "inline.png")
    assert same_picture(picture, site.folder / "inline.png")
    picture.unlink()


def test_the_commands_for_an_observer(site, commands):
    _, generate, show = commands["observer"]
    site.line(generate)
    request, totals = [json.loads(line) for line in site.line(show).splitlines()]
    assert request["ended"] == "finished"
    assert request["seconds"] > 0
    assert totals == {"totals": {"finished": 1}}
    for picture in site.folder.glob("a-blue-two-*.png"):
        picture.unlink()


def test_the_commands_for_a_hook(site, commands):
    _, plain, shifted = commands["pipeline-hook"]
    site.line(plain)
    site.line(shifted)
    first, second = sorted(site.folder.glob("a-blue-two-1*.png"))
    assert not same_picture(first, second)
    first.unlink()
    second.unlink()


def same_picture(one: Path, other: Path) -> bool:
    with Image.open(one) as left, Image.open(other) as right:
        return left.size == right.size and left.tobytes() == right.tobytes()
