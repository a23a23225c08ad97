"""Plugins that were written for other versions of the contract, as their authors left them: see contract_versions."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import omni_core
from omni_core import ExecutorSpec, PluginRegistry, hookimpl
from omni_core.errors import PluginVersionError
from omni_core.hookspecs import API_VERSION, OLDEST_API_VERSION
from omni_core.plugins import selection

FROZEN = Path(__file__).parents[1] / "contract_versions"
FOLDERS = sorted(path.name for path in FROZEN.iterdir() if path.is_dir())
VERSIONS = {int(name.removeprefix("version_")): name for name in FOLDERS if name.startswith("version_")}
SUPPORTED = [number for number in sorted(VERSIONS) if OLDEST_API_VERSION <= number <= API_VERSION]
OLDER = [number for number in sorted(VERSIONS) if number < OLDEST_API_VERSION]
SPOKEN = f"version {API_VERSION}"
if OLDEST_API_VERSION != API_VERSION:
    SPOKEN = f"versions {OLDEST_API_VERSION} to {API_VERSION}"
NEWER_MESSAGE = (
    "The executor 'contract-newer' of distribution contract-newer 1.0 is written for version 1000 of the executor "
    f"contract, and this omni-core speaks {SPOKEN}. This core is too old for it: pip install --upgrade omni-core"
)
HOOK_MESSAGE = re.compile(
    r"There is no hook 'omni_replica_drained'\.( Did you mean '\w+'\?)? If a newer omni-core has it: "
    r"pip install --upgrade omni-core, or write @hookimpl\(optionalhook=True\) to run with both\."
)
ARGUMENT_MESSAGE = (
    "omni_request_started takes 'node', and this omni-core gives it: request_id, request, replica, engine_id. "
    "If a newer one gives it node: pip install --upgrade omni-core, or write node=None to run with both."
)
SELECT = """
import sys
from omni_core import DiffusionEngine, OmniDiffusionConfig
DiffusionEngine(OmniDiffusionConfig(executor_class=sys.argv[1]))
"""


def name_of(folder: str) -> str:
    """Return the name of a distribution, which is that of its executor too."""
    return re.findall(r'^name = "(.+)"', FROZEN.joinpath(folder, "pyproject.toml").read_text(), re.MULTILINE)[0]


def older_message(number: int) -> str:
    name = name_of(VERSIONS[number])
    return (
        f"The executor {name!r} of distribution {name} 1.0 is written for version {number} of the executor contract, "
        f"and this omni-core speaks {SPOKEN}. The plugin is too old for this core: pip install --upgrade {name}"
    )


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each distribution, built and put by pip into a folder of its own."""
    base = tmp_path_factory.mktemp("contract_versions")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Without hatchling here, pip fetches it for the build, as it does for everybody.
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    shutil.copytree(FROZEN, base / "source", ignore=shutil.ignore_patterns("__pycache__"))
    source = [str(base / "source" / folder) for folder in FOLDERS]
    build(*pip, "wheel", "--no-deps", *isolation, "--wheel-dir", str(base / "wheels"), *source)
    for folder in FOLDERS:
        [wheel] = base.joinpath("wheels").glob(f"{name_of(folder).replace('-', '_')}-1.0-*.whl")
        build(*pip, "install", "--no-deps", "--no-index", "--target", str(base / folder), str(wheel))
    return {folder: base / folder for folder in FOLDERS}


def build(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    if "No module named pip" in done.stderr:
        pytest.skip("this environment has no pip")
    assert done.returncode == 0, done.stdout + done.stderr


def run(sites: dict[str, Path], folders: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh Python that sees these distributions and the core under test, but no settings of this process."""
    paths = [*(sites[folder] for folder in folders), Path(omni_core.__file__).parents[1]]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        cwd=sites[folders[0]],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def records(sites: dict[str, Path], folders: list[str]) -> dict[str, dict[str, object]]:
    """Return what `omni plugins` says of each distribution."""
    done = run(sites, folders, "-m", "omni_core", "plugins", "--json")
    assert done.stdout, done.stderr
    listed = json.loads(done.stdout)
    return {record["distribution"]: record for record in (listed if isinstance(listed, list) else listed["plugins"])}


def check_that_it_runs(sites: dict[str, Path], number: int, folders: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the program of a user of that version: it prints what it printed then, and every hook was called."""
    folder = FROZEN / VERSIONS[number]
    record = records(sites, folders)[name_of(folder.name)]
    assert (record["state"], record["error"]) == ("active", None)
    done = run(sites, folders, str(folder / "program.py"))
    assert done.returncode == 0, done.stderr
    seen, expected = json.loads(done.stdout), json.loads(folder.joinpath("expected.json").read_text())
    calls, noted = seen.pop("calls"), seen.pop("noted")
    expected_calls, expected_notes = expected.pop("calls"), expected.pop("noted")
    assert seen == expected
    assert [call for call in expected_calls if call not in calls] == []
    assert [note for note in expected_notes if note not in noted] == []
    command = run(sites, folders, "-m", "omni_core", name_of(folder.name))
    assert (command.returncode, command.stdout) == (0, "contract-one draws plain squares\n"), command.stderr
    assert {call[0] for call in calls} | {"omni_cli"} == set(record["hooks"])
    return done


@pytest.mark.install
@pytest.mark.parametrize("number", SUPPORTED)
def test_a_plugin_of_a_version_that_is_spoken_runs(sites, number):
    done = check_that_it_runs(sites, number, [VERSIONS[number]])
    assert "left out" not in done.stderr


@pytest.mark.install
def test_the_others_are_left_out_with_their_reasons_and_harm_nothing(sites):
    done = check_that_it_runs(sites, API_VERSION, FOLDERS)
    left_out = [line for line in done.stderr.splitlines() if "left out" in line]
    wanted = [NEWER_MESSAGE, ARGUMENT_MESSAGE, *map(older_message, OLDER)]
    assert [message for message in wanted if sum(message in line for line in left_out) != 1] == []
    assert sum(HOOK_MESSAGE.search(line) is not None for line in left_out) == 1
    assert len(left_out) == len(wanted) + 1
    # Their hooks are not called; those of the one that is made for both are.
    assert "was called" not in done.stderr
    assert "contract-newer-tolerant: started on node None" in done.stderr


@pytest.mark.install
def test_what_omni_plugins_says_of_each(sites):
    found = records(sites, FOLDERS)
    told = {name: (record["state"], record["error"]) for name, record in found.items() if name.startswith("contract-")}
    version, plugin = "omni_core.errors.PluginVersionError: ", "omni_core.errors.PluginError: "
    hook_error = told["contract-newer-hook"][1].removeprefix(plugin)
    assert HOOK_MESSAGE.fullmatch(hook_error)
    assert told == {
        **{name_of(VERSIONS[number]): ("incompatible", version + older_message(number)) for number in OLDER},
        **{name_of(VERSIONS[number]): ("active", None) for number in SUPPORTED},
        "contract-newer": ("incompatible", version + NEWER_MESSAGE),
        "contract-newer-hook": ("broken", plugin + hook_error),
        "contract-newer-argument": ("broken", plugin + ARGUMENT_MESSAGE),
        "contract-newer-tolerant": ("active", None),
    }


@pytest.mark.install
@pytest.mark.parametrize("folder", ["newer_version", *(VERSIONS[number] for number in OLDER)])
def test_selecting_one_that_is_not_spoken_says_why(sites, folder):
    message = NEWER_MESSAGE if folder == "newer_version" else older_message(int(folder.removeprefix("version_")))
    for choice in (name_of(folder), f"{name_of(folder)}:{name_of(folder)}"):
        done = run(sites, [folder], "-c", SELECT, choice)
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1] == f"omni_core.errors.PluginVersionError: {message}"


def test_every_version_has_its_folder():
    assert sorted(VERSIONS) == list(range(API_VERSION + 1)), "see contract_versions/README.md"
    assert API_VERSION in SUPPORTED
    for number, folder in VERSIONS.items():
        [source] = FROZEN.joinpath(folder, "src").iterdir()
        declared = re.findall(r"\bapi=(\d+)", source.joinpath("plugin.py").read_text())
        assert declared == [str(number)], folder


def test_nobody_has_edited_what_is_frozen():
    recorded = dict(reversed(line.split(maxsplit=1)) for line in FROZEN.joinpath("SHA256SUMS").read_text().splitlines())
    files = [path for path in FROZEN.glob("*/**/*") if path.is_file() and "__pycache__" not in path.parts]
    present = {path.relative_to(FROZEN).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    differing = sorted(name for name in recorded | present if recorded.get(name) != present.get(name))
    assert differing == [], "these are frozen, or new and without a checksum: see contract_versions/README.md"
    for folder in FOLDERS:
        assert "frozen: never edit" in FROZEN.joinpath(folder, "README.md").read_text()


@pytest.mark.parametrize(("api", "spoken"), [(0, False), (1, True), (2, True), (3, True), (4, False)])
def test_a_core_may_speak_several_versions(monkeypatch, api, spoken):
    monkeypatch.setattr(selection, "API_VERSION", 3)
    monkeypatch.setattr(selection, "OLDEST_API_VERSION", 1)

    class Offer:
        @hookimpl
        def omni_register_executors(self):
            return [ExecutorSpec("fast", "omni_core.executors.inline:InlineExecutor", api=api)]

    registry = PluginRegistry([], disabled=())
    if spoken:
        registry.register(Offer())
        assert registry.resolve_executor("fast").name == "fast"
    else:
        with pytest.raises(omni_core.errors.PluginError) as caught:
            registry.register(Offer())
        assert isinstance(caught.value.__cause__, PluginVersionError)
        assert "and this omni-core speaks versions 1 to 3. " in str(caught.value)
