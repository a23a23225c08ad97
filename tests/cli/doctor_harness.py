"""Mistakes made for real, and `omni doctor` asked about them."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from omni_core.executor import OPTIONS_TO_DECLARE
from omni_core.executors.inline import InlineExecutor


class Replicas(InlineExecutor):
    """An executor that honours everything; it is never started."""

    supported_options = OPTIONS_TO_DECLARE


@dataclass
class Machine:
    """What an operator can get wrong: files below `folder`, variables, flags, and what pip has installed in `site`."""

    omni: Callable[..., Any]
    folder: Path
    site: Path
    patch: pytest.MonkeyPatch
    flags: list[str] = field(default_factory=list)
    shell: str = ""  # what comes before omni, in a shell; anything here makes a new process for each run
    new_process: bool = False

    def report(self):
        """Run `omni doctor --json`."""
        arguments = ["doctor", "--json", *self.flags]
        if self.new_process or self.shell:
            result = self._in_a_process(arguments)
            code = result.returncode
            assert "Traceback" not in result.stderr, result.stderr
        else:
            for name in [name for name in sys.modules if name.split(".")[0].startswith("acme")]:
                del sys.modules[name]  # as in a new process
            importlib.invalidate_caches()
            result = self.omni(*arguments)
            code = result.exit_code
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        report = json.loads(result.stdout)
        assert code == (1 if report["problems"] else 0)
        return report

    def findings(self):
        """What is not ok."""
        return [finding for finding in self.report()["checks"] if finding["state"] != "ok"]

    def _in_a_process(self, arguments):
        words = [sys.executable, "-m", "omni_core", *arguments]
        return subprocess.run(
            f"{self.shell} {shlex.join(words)}",
            shell=True,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def export(self, **variables):
        for name, value in variables.items():
            self.patch.setenv(name, str(value))

    def follow(self, cure):
        """Do what the first command of a cure says, and those that follow it with `and then`; or its first sentence."""
        if self._follow_sentence(cure):
            return
        for command in re.findall("(?:^[^`]*|, and then )`([^`]+)`", cure):
            self.run(command)

    def _follow_sentence(self, cure):
        """Take a flag back, or edit a line of a file, where a cure begins with that."""
        flag = re.match(r"(?:Leave out|Correct the flag) (--[\w-]+)", cure)
        if flag is not None:
            at = self.flags.index(flag[1])
            del self.flags[at : at + 2]
            return True
        line = re.match(r"(?:Remove(?: the line)?|Correct) (\S+) (?:from|in) ([\w./-]+\.toml)", cure)
        new = re.match(r"Rename (\w+) to (\w+) in ([\w./-]+\.toml)", cure)
        if new is not None:
            old, name, file = new.groups()
            text = re.sub(rf"(?m)^{old}\b", name, Path(file).read_text())
        elif line is not None:
            old, file = line.groups()
            text = re.sub(rf"(?m)^{re.escape(old)}( .*)?\n", "", Path(file).read_text())
        else:
            return False
        assert text != Path(file).read_text(), f"{cure!r} changes nothing"
        Path(file).write_text(text)
        return True

    def run(self, command):
        """Do as a shell does, in this process where it is about variables, and in `site` where it is about pip."""
        word, _, rest = command.partition(" ")
        if word.startswith("--"):
            at = self.flags.index(word)
            self.flags[at : at + 2] = [word, *shlex.split(rest)]
        elif word == "export":
            for assignment in rest.split():
                name, _, value = assignment.partition("=")
                self.patch.setenv(name, value.strip("'"))
        elif word == "unset":
            for name in rest.split():
                self.patch.delenv(name)
        else:
            before = {file: file.name.partition("-")[0] for file in self.site.glob("*.dist-info")}
            environment = os.environ | {
                "PIP_TARGET": str(self.site),
                "PIP_NO_INDEX": "1",
                "PIP_NO_DEPS": "1",
                "PIP_FIND_LINKS": str(self.folder / "index"),
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            }
            tool = {"pip": f"{sys.executable} -m pip", "python": sys.executable}.get(word, word)
            done = subprocess.run(
                f"{tool} {rest}", shell=True, env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            if "No module named pip" in done.stderr:
                pytest.skip("this environment has no pip")
            assert done.returncode == 0, done.stderr
            # In an environment pip removes the version before; it does not where it was told to use a folder.
            for old, project in before.items():
                if len(list(self.site.glob(f"{project}-*.dist-info"))) > 1:
                    shutil.rmtree(old)

    def publish(self, name, version, files, requires=(), entry_point=""):
        """Put a wheel where pip looks for distributions."""
        module = name.replace("-", "_")
        info = f"{module}-{version}.dist-info"
        needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
        files = {
            **files,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": f"[omni_core]\n{entry_point}\n" if entry_point else "",
        }
        rows = ""
        for path, content in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
            rows += f"{path},sha256={digest},{len(content.encode())}\n"
        index = self.folder / "index"
        index.mkdir(exist_ok=True)
        with zipfile.ZipFile(index / f"{module}-{version}-py3-none-any.whl", "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
            archive.writestr(f"{info}/RECORD", f"{rows}{info}/RECORD,,\n")

    def install(self, requirement):
        self.run(f"pip install {requirement}")


def make_model(folder, class_name="DDPMPipeline"):
    """Write the folder of a small pipeline; its weights are no model, which nobody here loads."""
    (folder / "unet").mkdir(parents=True)
    index = {"_class_name": class_name, "unet": ["diffusers", "UNet2DModel"], "safety_checker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    save_file({"x": np.zeros(4, np.float32)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


def make_command(folder, name, text):
    """Write a program that prints `text`, and return the PATH on which it comes first."""
    folder.mkdir(exist_ok=True)
    (folder / "text").write_text(text)
    program = folder / name
    program.write_text(f"#!/bin/sh\ncat {folder / 'text'}\n")
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def without_rights():
    """Return what lets a command after it read no more than anybody: root may read everything."""
    if os.getuid() != 0:
        return ""
    drop = "setpriv --bounding-set=-all"
    tried = subprocess.run(f"{drop} true", shell=True, capture_output=True, text=True, timeout=30, check=False)
    if tried.returncode:
        pytest.skip(f"root cannot give up its rights here: {tried.stderr.strip()}")
    return drop


def mounting(folder, size):
    """Return what makes `folder` a file system of that size for a command after it; skip where that may not be."""
    mount = f"unshare -rm sh -c 'mount -t tmpfs -o size={size} tmpfs {folder}"
    tried = subprocess.run(f"{mount}'", shell=True, capture_output=True, text=True, timeout=30, check=False)
    if tried.returncode:
        pytest.skip(f"no mount namespace here: {tried.stderr.strip()}")
    return f'{mount} && exec "$@"\' sh'
