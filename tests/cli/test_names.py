from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_core.cli.names import FileNames, Target, slug


@given(st.text(max_size=300))
def test_a_slug_can_be_a_file_name_everywhere(text):
    name = slug(text)
    assert name
    assert len(name.encode("utf-8")) <= 150
    assert not set(name) & set('/\\:*?"<>|. \n\0')
    assert not name.startswith("-")


def test_slugs():
    assert slug("A red  SEVEN, please!") == "a-red-seven-please"
    assert slug("ein Bär / 红色的七") == "ein-bär-红色的七"
    assert slug(None) == slug("🐻 !") == "output"


requests = st.lists(st.tuples(st.text("ab1 ", max_size=3), st.integers(0, 12)), min_size=1, max_size=8)


@given(requests, st.integers(1, 3), st.sampled_from([None, "x", "X-1"]), st.randoms())
def test_no_name_comes_twice_and_the_order_does_not_matter(pairs, count, stem, random):
    target = Target(Path("nowhere"), stem, None)
    wanted = [(request, output) for request in range(len(pairs)) for output in range(count)]
    names = FileNames(target, pairs)
    paths = [next(names.free(request, output, count, ".png")) for request, output in wanted]
    assert len({str(path).casefold() for path in paths}) == len(wanted)
    assert {path.parent for path in paths} == {Path("nowhere")}
    if count == 1:
        random.shuffle(wanted)
        names = FileNames(target, pairs)
        again = {request: next(names.free(request, 0, 1, ".png")) for request, _ in wanted}
        assert [again[request] for request in range(len(pairs))] == paths


def test_names_for_one_file():
    assert _names("seven.png", 1, 1) == ["seven.png"]
    assert _names("seven.png", 1, 2) == ["seven-1.png", "seven-2.png"]
    assert _names("seven.png", 2, 1) == ["seven-1.png", "seven-2.png"]
    assert _names("seven.png", 2, 2) == ["seven-1-1.png", "seven-1-2.png", "seven-2-1.png", "seven-2-2.png"]
    assert _names("seven.png", 1, 10)[0] == "seven-01.png"


def test_names_from_prompts():
    assert _names(None, 2, 1) == ["a-red-seven-5.png", "a-red-seven-5-2.png"]


def test_files_of_earlier_runs_are_replaced_only_if_named():
    Path("a-red-seven-5.png").touch()
    Path("seven.png").touch()
    assert _names(None, 1, 1) == ["a-red-seven-5-2.png"]
    assert _names("seven.png", 1, 1) == ["seven.png"]


def _names(output, requests, count):
    names = FileNames(Target.parse(output), [("a red seven", 5)] * requests)
    return [
        str(names.named(count, ".png") or next(names.free(request, one, count, ".png")))
        for request in range(requests)
        for one in range(count)
    ]


def test_targets(tmp_path):
    (tmp_path / "there").mkdir()
    assert Target.parse("there") == Target.parse("there/") == Target(Path("there"))
    assert Target.parse("new/") == Target(Path("new"))
    assert Target.parse("new/x.PNG") == Target(Path("new"), "x", ".PNG")
    assert Target.parse("new/x.PNG").ending == ".png"


@pytest.mark.parametrize("output", ["", "x", "x.foo", "file/x.png", "file/"])
def test_targets_refused(output):
    Path("file").touch()
    with pytest.raises(click.UsageError):
        Target.parse(output)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(click.UsageError, match="permission"):
        Target.parse("locked/x.png")
