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
        f"{info}/entry_points.txt": f"[omni_core]\n{entry_points}\n",
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
            "acme = acme_exec.plugin",
        ),
        make_wheel(
            folder,
            "broken-exec",
            {"broken_exec/__init__.py": "", "broken_exec/plugin.py": BROKEN_PLUGIN},
            "broken = broken_exec.plugin",
        ),
    ]
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
