"""What runs the documentation's blocks notices those that are wrong."""

from __future__ import annotations

import pytest

from docs.page_folder import PageFolder
from docs.pages import ROOT, Block, blocks_of, code_of, links_of
from docs.shell import logical_lines, split_runnable

PAGE = ROOT / "docs" / "PAGE.md"
TEXT = """# Page

<!-- file: one.py -->
```python
X = 1
```

```python
import one
```

<!-- continued -->
```python
print(one.X)
```

Some `code`, and [a link](elsewhere.md#part).

<!-- file: two.py -->

A paragraph between a marker and a block parts them.

```sh
omni --help
```
"""


@pytest.fixture
def blocks(monkeypatch):
    read_text = type(PAGE).read_text
    monkeypatch.setattr(type(PAGE), "read_text", lambda self, **how: TEXT if self == PAGE else read_text(self, **how))
    return blocks_of(PAGE)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "page").mkdir()
    return PageFolder(tmp_path / "page", tmp_path / "environment")


def block(language, text, file=None):
    return Block(PAGE, 1, language, text, file)


def test_blocks_and_their_markers(blocks):
    assert [(one.language, one.file, one.line) for one in blocks] == [
        ("python", "one.py", 4),
        ("python", None, 8),
        ("sh", None, 23),
    ]
    assert blocks[1].text == "import one\n\nprint(one.X)\n"
    assert list(code_of(PAGE)) == ["code"]
    assert list(links_of(PAGE)) == ["elsewhere.md#part"]


def test_blocks_of_a_page_share_a_folder(blocks, folder):
    folder.write(blocks[0])
    assert folder.run_python(blocks[1]) == "1\n"


def test_a_block_that_fails_says_where(folder):
    with pytest.raises(AssertionError, match=r"PAGE:1 ended with 1"):
        folder.run_python(block("python", "raise SystemExit(1)"))
    with pytest.raises(AssertionError, match=r"PAGE:1 ended with 3"):
        folder.run_shell(block("sh", "true\nexit 3\ntrue"))


def test_a_shell_block_keeps_its_exports_and_stops_at_the_first_failure(folder):
    folder.run_shell(block("sh", "export A=1  # says why\n# a comment\ntest $A = 1 && \\\n  touch there"))
    assert (folder.folder / "there").exists()
    with pytest.raises(AssertionError):
        folder.run_shell(block("sh", "false\ntouch not-there"))
    assert not (folder.folder / "not-there").exists()


def test_what_a_console_shows_is_compared(folder):
    folder.run_console(block("console", "$ echo one two\none …\n$ echo three\nthree\n"))
    with pytest.raises(AssertionError, match="three"):
        folder.run_console(block("console", "$ echo three\nfour\n"))


def test_a_file_stays_in_the_folder(folder):
    with pytest.raises(AssertionError, match="elsewhere"):
        folder.write(block("python", "", "../outside.py"))


@pytest.mark.parametrize(
    ("line", "runnable", "complains"),
    [
        ("omni config", "omni config", False),
        ("python3 -m venv .venv && . .venv/bin/activate && pip install . && omni config", "omni config", False),
        ("pip install ./plugins/omni_exec_multiproc", "", False),
        ("pip install ./plugins/omni_exec_threads", "", True),
        ("pip install 'omni-core[testing]'", "", False),
        ("pip install 'omni-core[tests]'", "", True),
        ("pip install -c constraint.txt .", "", True),
        ("pip install omni-exec-ray", "", True),
        ("nox -s docs", "", False),
        ("nox -s documentation", "", True),
        ("python benchmarks/rpc.py --rounds 3", "", False),
        ("python benchmarks/rpc.py --round 3", "", True),
        ("python benchmarks/ipc.py", "", True),
        ("omni torchrun-worker --rdzv-endpoint 10.0.0.1:29500", "", False),
        ("omni torchrun-worker --endpoint 10.0.0.1:29500", "", True),
        ("docker build -f deploy/Dockerfile -t omni .", "", False),
        ("docker build -f deploy/Containerfile -t omni .", "", True),
        ("sudo /opt/omni/bin/pip install -c constraints.txt './plugins/omni_serve[video]'", "", False),
        ("sudo /opt/omni/bin/pip install -c constraints.txt './plugins/omni_serve[sound]'", "", True),
        ("torchrun --nproc-per-node 2 examples/spmd.py", "", False),
        ("torchrun --nproc-per-node 2 examples/smpd.py", "", True),
    ],
)
def test_what_is_not_run_is_looked_at(line, runnable, complains, tmp_path):
    found, complaints = split_runnable(line, tmp_path)
    assert found == runnable
    assert bool(complaints) is complains


def test_lines_are_joined_and_comments_left_out():
    assert logical_lines("# first\na \\\n  b\n\nc # why\n") == ["a b", "c # why"]
