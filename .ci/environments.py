"""Environments that share torch: one has what omni and its tests need from others, the rest see it and add to it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".nox"
BASE = ENVIRONMENTS / "base"
FILES = ("constraints.txt", "pyproject.toml", ".ci/environments.py")


@dataclass(frozen=True)
class Environment:
    """What is installed besides what all of them see.

    Attributes:
        name: Of its folder.
        packages: Arguments of `pip install`.
        editable: Whether folders among them are installed in place. Such an environment is kept for the next time.
    """

    name: str
    packages: tuple[str, ...]
    editable: bool = False

    @property
    def python(self) -> Path:
        """Its Python."""
        return python_of(ENVIRONMENTS / self.name)


def python_of(folder: Path) -> Path:
    """Return the Python of an environment."""
    return folder / "bin" / "python"


def make_base() -> None:
    """Make the environment that all others see, unless it is there: with torch, this takes a minute."""
    stamp = _stamp("base")
    if _is_made(BASE, stamp):
        return
    _create(BASE, with_pip=True)
    # Not compiled: of torch's thousands of modules most are never imported, and the others are when they are.
    _pip(BASE, "install", "--no-compile", ".[test]")
    # It came with what it needs; which omni-core there is, is for each environment to say.
    _run([str(python_of(BASE)), "-m", "pip", "uninstall", "-q", "-y", "omni-core"])
    (BASE / "stamp").write_text(stamp, encoding="utf-8")


def make(environment: Environment) -> None:
    """Make an environment; it takes some seconds.

    Raises:
        subprocess.CalledProcessError: pip failed; `output` says why.
    """
    folder = ENVIRONMENTS / environment.name
    stamp = _stamp(environment.name, *environment.packages)
    if environment.editable and _is_made(folder, stamp):
        return
    _create(folder, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    [shared] = BASE.glob("lib/python*/site-packages")
    # Not its path alone: .pth files that lie there count as well.
    (packages / "base.pth").write_text(f"import site; site.addsitedir({str(shared)!r})\n", encoding="utf-8")
    words: list[str] = []
    for package in environment.packages:
        words += ["-e", package] if environment.editable and package.startswith(".") else [package]
    # The build back end is there, and need not be fetched for each build.
    _pip(folder, "install", "--no-build-isolation", *words)
    _offer_programs(folder)
    (folder / "stamp").write_text(stamp, encoding="utf-8")


def _create(folder: Path, with_pip: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", *([] if with_pip else ["--without-pip"]), str(folder)])
    for old in folder.glob("lib/python*/site-packages/setuptools*"):
        shutil.rmtree(old)  # Before Python 3.12 venv brings one that would hide the newer one that torch asks for.


def _offer_programs(folder: Path) -> None:
    """Put the programs that all share beside those of an environment, to be run by its Python."""
    for program in (BASE / "bin").iterdir():
        own = folder / "bin" / program.name
        content = b"" if program.is_symlink() or program.is_dir() else program.read_bytes()
        if own.exists() or not content or program.name.lower().startswith(("activate", "pip")):
            continue
        first, _, rest = content.partition(b"\n")
        if first.startswith(b"#!") and b"python" in first:
            own.write_bytes(f"#!{python_of(folder)}\n".encode() + rest)
            own.chmod(0o755)
        else:
            own.symlink_to(program)


def _pip(folder: Path, command: str, *arguments: str) -> None:
    pip = [str(python_of(BASE)), "-m", "pip", "--python", str(python_of(folder)), "--disable-pip-version-check"]
    _run([*pip, command, "-q", "-c", "constraints.txt", *arguments])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _is_made(folder: Path, stamp: str) -> bool:
    file = folder / "stamp"
    return file.is_file() and file.read_text(encoding="utf-8") == stamp and python_of(folder).exists()


def _stamp(*what: str) -> str:
    """Return what changes when an environment must be made anew."""
    read = b"".join((ROOT / file).read_bytes() for file in FILES)
    return hashlib.sha256(f"{what} {ROOT} {sys.version}".encode() + read).hexdigest()
