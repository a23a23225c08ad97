"""The folder in which the blocks of one page are run, one after the other."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from docs.page_server import PORT, PageServer
from docs.pages import Block
from docs.shell import logical_lines, split_runnable
from omni_core.testing import SAMPLE
from omni_core.testing.warm_python import WarmPython

# Seconds that one block may take; the conformance suite is the longest.
BLOCK_TIMEOUT_S = 540


class PageFolder:
    """Runs blocks as somebody would who follows the page with a terminal open in this folder.

    Args:
        folder: An empty folder.
        environment_folder: Where an environment is made if the page installs a distribution that it has made.
        warm: What runs Python programs, `omni` among them. None: each in an interpreter of its own, as a user does; and
            the conformance suite is run as a whole.
    """

    def __init__(self, folder: Path, environment_folder: Path, warm: WarmPython | None = None) -> None:
        self.folder = folder
        self._environment_folder = environment_folder
        self._scripts = [sysconfig.get_path("scripts")]
        self._warm = warm
        self._server: PageServer | None = None
        self._use(Path(sys.executable))

    def _use(self, python: Path) -> None:
        self._python = python
        self._command = [str(python)]
        self._warm_scripts: list[str] = []
        if self._warm is not None:
            self._command = self._warm.command(str(python))
            scripts = self._environment_folder.with_name("warm")
            self._warm.write_scripts(scripts, str(python))
            self._warm_scripts = [str(scripts)]

    def close(self) -> None:
        """End the server that the page has started, if it has."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def write(self, block: Block) -> None:
        """Write a block to the file that it names."""
        assert block.file is not None
        file = self.folder / block.file
        assert file.resolve().is_relative_to(self.folder.resolve()), f"{block.where}: {block.file} is elsewhere"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")

    def run_python(self, block: Block) -> str:
        """Run a block in a Python of its own; return what it prints."""
        return self._run([*self._command, "-c", self._addressed(block.text)], block)

    def run_shell(self, block: Block) -> None:
        """Run a block line by line; what is not to be run is looked at instead."""
        exports: list[str] = []
        for line in logical_lines(block.text):
            runnable = self._runnable(line, block)  # one by one: a line may make what the next one needs
            if runnable.startswith("omni serve") and "--help" not in runnable:
                self.close()
                self._server = PageServer(runnable.split(" #")[0], self.folder, self._environment())
                continue
            self._run(["bash", "-euo", "pipefail", "-c", "\n".join([*exports, runnable])], block)
            if line.startswith("export "):
                exports.append(line)

    def run_console(self, block: Block) -> None:
        """Run the lines that begin with `$`, and compare what they print with what stands below them."""
        for part in block.text.split("\n$ "):
            line, _, expected = part.removeprefix("$ ").partition("\n")
            printed = self._run(["bash", "-euo", "pipefail", "-c", self._runnable(line, block)], block)
            expected = expected.replace("…", "...")
            options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert doctest.OutputChecker().check_output(expected, printed, options), (
                f"{block.where}: `{line}` printed\n{printed}\nnot\n{expected}"
            )

    def _runnable(self, line: str, block: Block) -> str:
        runnable, complaints = split_runnable(line, self.folder)
        assert not complaints, f"{block.where}: {line}: {'; '.join(complaints)}"
        if runnable.startswith("pip install"):
            self._make_environment()
            # What it depends on is there, and the tests need no network.
            install = (
                f"{sys.executable} -m pip --python {self._python} install --no-deps --no-build-isolation --no-index"
            )
            return runnable.replace("pip install", f"{install} --quiet --disable-pip-version-check", 1)
        if self._warm is not None and re.fullmatch(r"omni plugins check \S+", runnable):
            runnable = f"{runnable} --only {shlex.quote(' or '.join(SAMPLE))}"
        return self._addressed(runnable) or ":"

    def _addressed(self, text: str) -> str:
        """Return a text with the port of the page's server in place of the one that the page says."""
        return text if self._server is None else text.replace(f":{PORT}", f":{self._server.port}")

    def _make_environment(self) -> None:
        """Make an environment for this page in which everything that the tests have is there as well."""
        if self._python.is_relative_to(self._environment_folder):
            return
        venv.create(self._environment_folder, with_pip=False, symlinks=True)
        own = self._environment_folder / "bin"
        [packages] = self._environment_folder.glob("lib/python*/site-packages")
        for key in ("purelib", "platlib"):
            line = f"import site; site.addsitedir({sysconfig.get_path(key)!r})\n"
            (packages / f"zz_{key}.pth").write_text(line, encoding="utf-8")
        for script in Path(self._scripts[0]).iterdir():  # console scripts, to be run by the Python of this environment
            if not (own / script.name).exists() and script.is_file():
                content = script.read_bytes()
                if content.startswith(b"#!") and b"python" in content.split(b"\n", 1)[0]:
                    (own / script.name).write_bytes(f"#!{own / 'python'}\n".encode() + content.split(b"\n", 1)[1])
                    (own / script.name).chmod(0o755)
        self._scripts.insert(0, str(own))
        self._use(own / "python")

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMNI_", "PYTEST_"))}
        environment["PATH"] = os.pathsep.join([*self._warm_scripts, *self._scripts, os.environ["PATH"]])
        return environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def _run(self, command: list[str], block: Block) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BLOCK_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, (
            f"{block.where} ended with {done.returncode}:\n{block.text}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout
