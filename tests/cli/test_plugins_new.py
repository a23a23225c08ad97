"""What `omni plugins new` writes and refuses. That it works once installed: test_plugins_new_installed.py."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml

from omni_core.cli.plugins_new import KINDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMON = {
    ".github/workflows/ci.yml",
    ".gitignore",
    "LICENSE",
    "README.md",
    "noxfile.py",
    "pyproject.toml",
    "src/MODULE/__init__.py",
    "src/MODULE/options.py",
    "src/MODULE/plugin.py",
    "src/MODULE/py.typed",
    "tests/test_plugin.py",
}
OWN = {
    "executor": {"src/MODULE/executor.py", "tests/test_executor.py"},
    "observer": {"src/MODULE/recorder.py", "tests/test_observer.py"},
    "pipeline-hook": {"tests/test_hook.py"},
}
# The shortest name, an ordinary one, one of two parts, and the longest: the formatter breaks lines by their length.
NAMES = ("x", "acme", "my-2nd", "a" * 30)


def everything_in(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def new(omni):
    """Runs `omni plugins new` and expects that it works; returns what it printed."""

    def run(*arguments: object) -> str:
        done = omni("plugins", "new", *arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_there(new, kind):
    said = new("acme", "--kind", kind)
    distribution = "omni-exec-acme" if kind == "executor" else "omni-acme"
    files = everything_in(Path(distribution))
    module = distribution.replace("-", "_")
    assert set(files) == {path.replace("MODULE", module) for path in COMMON | OWN[kind]}
    assert said.startswith(f"Wrote {len(files)} files to {distribution}. Next:\n")
    assert list(Path().iterdir()) == [Path(distribution)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_lint_and_format(new, kind, name):
    new(name, "--kind", kind)
    [folder] = Path().iterdir()
    for path, text in everything_in(folder).items():
        marks = [mark for mark in ("{%", "%}", "{{", "{#", "MODULE", "jinja") if mark in text]
        assert marks == ([] if path != ".github/workflows/ci.yml" else ["{{"]), path
        assert text == "" or (text.endswith("\n") and not text.endswith("\n\n")), path
        assert all(len(line) <= 130 for line in text.splitlines()), path
        if path.endswith(".py"):
            ast.parse(text, path)
    ruff = Path(sysconfig.get_path("scripts")) / "ruff"
    for arguments in (["check"], ["format", "--diff"]):
        done = subprocess.run([ruff, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kind", "distribution", "entry_point"),
    [
        ("executor", "omni-exec-my-tool", "omni_exec_my_tool.plugin"),
        ("observer", "omni-my-tool", "omni_my_tool.plugin:plugin"),
        ("pipeline-hook", "omni-my-tool", "omni_my_tool.plugin"),
    ],
)
def test_metadata(new, kind, distribution, entry_point):
    new("my-tool", "--kind", kind, "--author", 'Ada "A." Lovelace <ada@example.org>')
    project = tomllib.loads((Path(distribution) / "pyproject.toml").read_text())["project"]
    assert project["name"] == distribution
    assert project["entry-points"] == {"omni_core": {"my-tool": entry_point}}
    assert project["authors"] == [{"name": 'Ada "A." Lovelace', "email": "ada@example.org"}]
    assert f"omni-core>={version('omni-core')}" in project["dependencies"]
    assert project["optional-dependencies"]["test"] == ["omni-core[testing]"]
    assert 'Ada "A." Lovelace\n' in (Path(distribution) / "LICENSE").read_text()
    workflow = yaml.safe_load((Path(distribution) / ".github/workflows/ci.yml").read_text())
    python = workflow["jobs"]["tests"]["steps"][1]["with"]["python-version"]
    assert python == "${{ matrix.python }}"


@pytest.mark.parametrize(
    ("author", "expected"),
    [("Ada Lovelace", [{"name": "Ada Lovelace"}]), (None, None), ("Ådå 艾", [{"name": "Ådå 艾"}])],
)
def test_authors(new, author, expected):
    new("acme", *(() if author is None else ("--author", author)))
    project = tomllib.loads(Path("omni-exec-acme/pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project.get("authors") == expected
    holder = "the authors of omni-exec-acme" if author is None else author
    assert holder in Path("omni-exec-acme/LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("author", ["", "<ada@example.org>", "Ada <ada>", "Ada\nLovelace", "Ada <a@b> <c@d>"])
def test_no_author(omni, author):
    done = omni("plugins", "new", "acme", "--author", author)
    assert done.exit_code == 2
    assert "Ada Lovelace <ada@example.org>" in done.stderr
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "given", "distribution"),
    [
        ("executor", "omni-exec-acme", "omni-exec-acme"),
        ("executor", "omni_exec_acme", "omni-exec-acme"),
        ("executor", "omni-acme", "omni-exec-acme"),
        ("executor", "my_tool", "omni-exec-my-tool"),
        ("observer", "omni-acme", "omni-acme"),
        ("pipeline-hook", "omni-exec-acme", "omni-acme"),
    ],
)
def test_prefixes_are_not_doubled(new, kind, given, distribution):
    new(given, "--kind", kind)
    assert list(Path().iterdir()) == [Path(distribution)]


@pytest.mark.parametrize(
    ("kind", "commands"),
    [
        (
            "executor",
            [
                "pip install -e './omni-exec-acme[test]'",
                "omni plugins check acme",
                'omni generate "a blue two" --executor-class acme',
            ],
        ),
        (
            "observer",
            [
                "pip install -e './omni-acme[test]'",
                'ACME_FILE=acme.jsonl omni generate "a blue two"',
                "cat acme.jsonl",
            ],
        ),
        (
            "pipeline-hook",
            [
                "pip install -e './omni-acme[test]'",
                'omni generate "a blue two" --seed 1',
                'ACME_SHIFT=8 omni generate "a blue two" --seed 1',
            ],
        ),
    ],
)
def test_the_next_commands(new, kind, commands):
    printed = new("acme", "--kind", kind).splitlines()
    assert [line.strip() for line in printed[2:]] == commands
    [folder] = Path().iterdir()
    assert "\n".join(commands) in (folder / "README.md").read_text()


def test_another_folder(new, tmp_path):
    (tmp_path / "my plugins").mkdir()
    relative = new("acme", "--output", "my plugins")
    assert "pip install -e './my plugins/omni-exec-acme[test]'" in relative
    absolute = new("other", "--output", tmp_path / "my plugins")
    assert f"pip install -e '{tmp_path}/my plugins/omni-exec-other[test]'" in absolute
    assert (tmp_path / "my plugins/omni-exec-acme/pyproject.toml").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["my plugins"]


def test_a_missing_folder(omni):
    done = omni("plugins", "new", "acme", "--output", "nowhere")
    assert done.exit_code == 2
    assert "'nowhere' does not exist" in done.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Acme", "Perhaps acme?"),
        ("ac me", "Perhaps ac-me?"),
        ("acme!", "Perhaps acme?"),
        ("2nd", "Perhaps nd?"),
        ("acme--x", "Perhaps acme-x?"),
        ("../acme", "Perhaps acme?"),
        ("acme.x", "Perhaps acme-x?"),
        ("acmé", "such as acme or my-cluster"),
        ("", "such as acme or my-cluster"),
        ("omni-", "such as acme or my-cluster"),
        ("omni-exec-", "such as acme or my-cluster"),
        ("a" * 31, "up to 30 lower-case letters"),
        ("class", "'class' is a keyword of Python"),
        ("omni-exec-import", "'import' is a keyword of Python"),
        ("omni", "OMNI_ are omni's own"),
        ("inline", "taken by a plugin of omni-core"),
        ("omni-exec-inline", "taken by a plugin of omni-core"),
        ("log", "taken by a plugin of omni-core"),
        ("diffusion", "a class DiffusionExecutor, which omni_core has"),
    ],
)
def test_bad_names(omni, name, says):
    done = omni("plugins", "new", "--", name)
    assert done.exit_code == 2, done.output
    said = " ".join(done.stderr.split())
    assert says in said
    assert "choose another name" in said or "lower-case letters a-z and digits" in said, "what a name may be"
    assert list(Path().iterdir()) == []


def test_an_installed_distribution_is_not_written_again(omni):
    done = omni("plugins", "new", "core", "--kind", "observer")
    assert done.exit_code == 2
    assert f"omni-core {version('omni-core')} is installed already" in " ".join(done.stderr.split())
    with pytest.raises(PackageNotFoundError):
        version("omni-exec-core")
    assert omni("plugins", "new", "core").exit_code == 0, "an executor of that name is a distribution of its own"


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_exists_is_left_alone(omni, make):
    make(Path("omni-exec-acme"))
    done = omni("plugins", "new", "acme")
    assert done.exit_code == 2
    assert "omni-exec-acme exists already, and nothing was changed" in " ".join(done.stderr.split())
    assert list(Path().rglob("*")) == [Path("omni-exec-acme")]


def test_nothing_half_written_is_left(omni, monkeypatch):
    written = []

    def write_text(self: Path, text: str, encoding: str) -> int:
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        written.append(self)
        return self.write_bytes(text.encode(encoding))

    monkeypatch.setattr(Path, "write_text", write_text)
    done = omni("plugins", "new", "acme")
    assert done.exit_code == 1
    assert "omni-exec-acme could not be written: No space left on device. Nothing is left." in done.stderr
    assert len(written) == 5
    assert list(Path().iterdir()) == []


def test_the_help_says_what_it_does(omni):
    said = omni("plugins", "new", "--help").stdout
    assert "[executor|observer|pipeline-hook]" in said
    assert "new" in omni("plugins", "--help").stdout


def test_jinja_is_imported_by_the_command_alone(omni_process):
    done = omni_process("plugins", "--json")
    assert done.returncode == 0
    code = "import sys, omni_core.cli.plugins; print({'jinja2', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "set()\n", done.stderr
