"""Third-party distributions, really installed with pip, used by a program of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

import omni_core

pytestmark = pytest.mark.install

ACME_PLUGIN = """
from omni_core import ExecutorSpec, hookimpl


@hookimpl
def omni_register_executors():
    return [ExecutorSpec("acme", "acme_exec.executor:AcmeExecutor", "Draws plain squares.")]
"""

# The five methods of the contract, and public names only.
ACME_EXECUTOR = """
from PIL import Image

from omni_core import DiffusionExecutor, OmniRequestOutput


class AcmeExecutor(DiffusionExecutor):
    def _init_executor(self):
        self.colour = "red"

    def execute_model(self, requests):
        return [self._draw(request) for request in requests]

    def _draw(self, request):
        picture = Image.new("RGB", (8, 8), self.colour)
        return OmniRequestOutput(
            request_id=request.request_id, output={"images": [picture]}, seed=request.seed, finish_reason="finished"
        )

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None, unique_reply_rank=None):
        call = method if callable(method) else getattr(type(self), method)
        replies = [call(self, *args, **(kwargs or {}))]
        return replies if unique_reply_rank is None else replies[unique_reply_rank]

    def check_health(self):
        pass

    def shutdown(self):
        self.colour = None
"""

PROGRAM = """
import json
import sys

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest

with DiffusionEngine(OmniDiffusionConfig(executor_class=sys.argv[1])) as engine:
    (output,) = engine.step([OmniDiffusionRequest(prompt="x", seed=1)])
    engine.check_health()
    replies = engine.collective_rpc(lambda worker, number: (worker.colour, number), args=(7,))
    print(json.dumps({
        "executor": type(engine.executor).__name__,
        "finish_reason": output.finish_reason,
        "seed": output.seed,
        "size": output.images[0].size,
        "pixel": output.images[0].getpixel((0, 0)),
        "replies": replies,
        "torch": "torch" in sys.modules,
    }))
"""

BROKEN_PLUGIN = "raise RuntimeError('the licence of broken-exec ran out')\n"


def make_wheel(folder: Path, name: str, files: dict[str, str], entry_points: str) -> Path:
    """Write a wheel by hand: it needs no build back end, so the test runs offline and on a bare machine."""
    module = name.replace("-", "_")
    info = f"{module}-1.2.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\nRequires-Dist: omni-core\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entry_points,
    }
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content.encode())}\n"
    wheel = folder / f"{module}-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both distributions in it, put there by pip."""
    folder = tmp_path_factory.mktemp("distributions")
    wheels = [
        make_wheel(
            folder,
            "acme-exec",
            {"acme_exec/__init__.py": "", "acme_exec/plugin.py": ACME_PLUGIN, "acme_exec/executor.py": ACME_EXECUTOR},
            "[omni_core]\nacme = acme_exec.plugin\n",
        ),
        make_wheel(
            folder,
            "broken-exec",
            {"broken_exec/__init__.py": "", "broken_exec/plugin.py": BROKEN_PLUGIN},
            "[omni_core]\nbroken = broken_exec.plugin\n",
        ),
    ]
    return install(folder, wheels)


def install(folder: Path, wheels: list[Path]) -> Path:
    """Let pip put wheels into a folder of their own."""
    target = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(target)]
    done = subprocess.run([*command, *map(str, wheels)], capture_output=True, text=True, timeout=120, check=False)
    if "No module named pip" in done.stderr:
        pytest.skip("this environment has no pip")
    assert done.returncode == 0, done.stderr
    return target


def run(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh Python that sees what pip installed and the omni_core under test, but no settings of this process."""
    core = Path(omni_core.__file__).parents[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, "PYTHONPATH": os.pathsep.join([str(site), str(core)]), **environment},
        cwd=site,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("choice", ["acme", "acme-exec:acme", "acme_exec.executor:AcmeExecutor"])
def test_an_installed_executor_is_found_selected_and_runs(site, choice):
    done = run(site, "-c", PROGRAM, choice)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "executor": "AcmeExecutor",
        "finish_reason": "finished",
        "seed": 1,
        "size": [8, 8],
        "pixel": [255, 0, 0],
        "replies": [["red", 7]],
        "torch": False,
    }
    # The broken neighbour is in the log, with its distribution and the cause, and harmed nothing.
    assert done.stderr.count("the licence of broken-exec ran out") == 1
    assert "broken-exec:broken" in done.stderr


def test_selecting_the_broken_one_raises_its_cause(site):
    done = run(site, "-c", PROGRAM, "broken")
    assert done.returncode != 0
    assert "PluginError" in done.stderr
    assert "distribution broken-exec 1.2 is broken" in done.stderr
    assert "direct cause of the following exception" in done.stderr
    assert "broken_exec/plugin.py" in done.stderr.replace(os.sep, "/")


def test_a_plugin_is_left_out_on_request(site):
    done = run(site, "-c", PROGRAM, "acme", OMNI_PLUGINS_DISABLE="acme-exec,broken-exec")
    assert "OMNI_PLUGINS_DISABLE leaves out the plugin 'acme' of distribution acme-exec 1.2" in done.stderr
    assert "licence" not in done.stderr


def test_omni_plugins_lists_both(site):
    done = run(site, "-m", "omni_core", "plugins", "--json")
    assert done.stdout, done.stderr
    listed = json.loads(done.stdout)
    records = listed if isinstance(listed, list) else listed["plugins"]
    by_distribution = {record["distribution"]: record for record in records}
    acme, broken = by_distribution["acme-exec"], by_distribution["broken-exec"]
    assert (acme["state"], acme["version"], acme["error"]) == ("active", "1.2", None)
    assert [spec["name"] for spec in acme["executors"]] == ["acme"]
    assert acme["hooks"] == ["omni_register_executors"]
    assert broken["state"] == "broken"
    assert broken["error"] == "RuntimeError: the licence of broken-exec ran out"


def test_listing_plugins_imports_no_executor(site):
    code = textwrap.dedent(
        """
        import sys
        from omni_core import PluginRegistry
        assert "acme" in [spec.name for _, spec in PluginRegistry().executors]
        print(sorted({"torch", "acme_exec.executor", "omni_core.executor"} & set(sys.modules)))
        """
    )
    done = run(site, "-c", code)
    assert done.stdout.strip() == "[]", done.stderr


# What an author gets wrong: the group of the entry point, what it names, the source of the module, and what is told.
_HOOK = "from omni_core import hookimpl\n\n@hookimpl\ndef omni_engine_closed(): ...\n"
MISTAKES: dict[str, tuple[str, str, str, str, str]] = {
    "hyphen": ("omni-core", "{module}", _HOOK, "broken", "in the group 'omni-core', and plugins are looked for in"),
    "no-separator": ("omnicore", "{module}", _HOOK, "broken", "write [project.entry-points.omni_core]"),
    "plural": ("omni_cores", "{module}", _HOOK, "broken", "the group 'omni_cores'"),
    "capitals": ("Omni_Core", "{module}", _HOOK, "broken", "the group 'Omni_Core'"),
    "exchanged": ("omni_croe", "{module}", _HOOK, "broken", "the group 'omni_croe'"),
    "plugins": ("omni_core.plugins", "{module}", _HOOK, "broken", "the group 'omni_core.plugins'"),
    "no-hook": ("omni_core", "{module}", "value = 1\n", "active", "implements no hook, so it does nothing"),
    "near-hook": (
        "omni_core",
        "{module}",
        "def omni_request_stp(step): ...\n",
        "active",
        "omni_request_stp is no hook and is never called. Did you mean 'omni_request_step'?",
    ),
    "no-prefix": (
        "omni_core",
        "{module}",
        "def register_executors(): ...\n",
        "active",
        "Did you mean 'omni_register_executors'?",
    ),
    "near-hook-beside-others": (
        "omni_core",
        "{module}",
        _HOOK + "\ndef omni_request_faild(error): ...\n",
        "active",
        "Did you mean 'omni_request_failed'?",
    ),
    "marked-near-hook": (
        "omni_core",
        "{module}",
        _HOOK + "\n@hookimpl\ndef omni_request_stp(step): ...\n",
        "broken",
        "There is no hook 'omni_request_stp'. Did you mean 'omni_request_step'?",
    ),
    "unmarked": ("omni_core", "{module}", "def omni_configure(config): ...\n", "broken", "Put @hookimpl above it"),
    "argument": (
        "omni_core",
        "{module}",
        _HOOK + "\n@hookimpl\ndef omni_request_step(request_id, stp): ...\n",
        "broken",
        "omni_request_step takes 'stp', and this omni-core gives it: request_id, step, num_steps, engine_id. Did you "
        "mean 'step'?",
    ),
    "no-module": ("omni_core", "{module}_x", _HOOK, "broken", "there is no module '{module}_x'"),
    "no-attribute": (
        "omni_core",
        "{module}:plugn",
        _HOOK + "plugin = None\n",
        "broken",
        "Module {module} has no 'plugn'. Did you mean 'plugin'?",
    ),
    "exits": ("omni_core", "{module}", "import sys\nsys.exit('no licence')\n", "broken", "SystemExit: no licence"),
    "prints": ("omni_core", "{module}", "print('welcome')\n" + _HOOK, "active", ""),
    "slow": (
        "omni_core",
        "{module}",
        "import threading, scipy\nthreading.Event().wait(1.1)\n" + _HOOK,
        "active",
        "s, and it imports scipy. Every engine and most commands of omni wait for that",
    ),
    # Somebody else's group, as far as anybody can tell.
    "stranger": ("omnivore", "{module}", "raise RuntimeError('imported')\n", "", ""),
}


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has put a distribution for each mistake."""
    folder = tmp_path_factory.mktemp("mistakes")
    wheels = []
    for name, (group, value, source, _, _) in MISTAKES.items():
        module = f"mistake_{name.replace('-', '_')}"
        points = f"[{group}]\nplug = {value.format(module=module)}\n"
        wheels.append(make_wheel(folder, f"mistake-{name}", {f"{module}.py": source}, points))
    return install(folder, wheels)


@pytest.fixture(scope="module")
def told(mistaken: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """What `omni plugins --json` says of each, and what the log says."""
    done = run(mistaken, "-m", "omni_core", "plugins", "--json")
    assert done.returncode == 0, done.stderr
    return {record["distribution"]: record for record in json.loads(done.stdout)}, done.stderr


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_an_author_is_told(name, told):
    records, log = told
    *_, state, says = MISTAKES[name]
    record = records.get(f"mistake-{name}")
    if not state:
        assert record is None
        assert f"mistake-{name}" not in log
        return
    assert record is not None
    assert record["state"] == state, record["error"]
    told = [*record["warnings"], *filter(None, [record["error"]])]
    says = says.format(module=f"mistake_{name.replace('-', '_')}")
    assert len(told) == bool(says), told
    if says:
        assert says in told[0]
        assert log.count(told[0]) == 1, "and once in the log"
    # They all name their entry point `plug`, and each is found all the same.
    assert record["name"] == "plug"


def test_people_are_told_as_well(mistaken):
    done = run(mistaken, "-m", "omni_core", "plugins")
    assert "mistake-no-hook: It implements no hook" in done.stdout
    assert "mistake-hyphen is broken: " in done.stdout
    assert "welcome" not in done.stdout
    assert "welcome" in done.stderr


def test_a_plugin_in_a_misspelt_group_answers_to_its_name_and_is_not_imported(mistaken):
    code = "import sys, omni_core; omni_core.PluginRegistry().resolve_executor('mistake-hyphen')"
    done = run(mistaken, "-c", code)
    assert "in the group 'omni-core'" in done.stderr.splitlines()[-1]
    code = "import sys, omni_core; omni_core.PluginRegistry(); print('mistake_hyphen' in sys.modules)"
    assert run(mistaken, "-c", code).stdout.split() == ["welcome", "False"]
