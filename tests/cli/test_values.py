from __future__ import annotations

import contextlib
import json

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from omni_core.cli.values import KeyValue, as_table, files_of, parse_key_value

KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,10}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(KEYS, JSON)
def test_json_comes_back_as_it_was(key, value):
    assert parse_key_value(f"{key}={json.dumps(value)}") == KeyValue(key, value)


@given(KEYS, st.text())
def test_any_text_is_taken_or_refused(key, text):
    if text.lstrip().startswith(("@", "[", "{", '"')):
        with contextlib.suppress(ValueError):
            parse_key_value(f"{key}={text}")
    else:
        assert parse_key_value(f"{key}={text}").key == key


@given(st.text())
def test_anything_without_a_key_is_refused(text):
    with contextlib.suppress(ValueError):
        assert parse_key_value(text).key.isidentifier()


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=b=c", "b=c"), ("a=", ""), ("a=True", True), ("a=None", None), ("a=3", 3), ("a=0x", "0x"), ('a="@x"', "@x")],
)
def test_values(text, value):
    assert parse_key_value(text).value == value


@pytest.mark.parametrize(
    "text", ["a", "=1", "a-b=1", "a=[1,", 'a={"x"', "a=@nothing.png", "a=@model.pt", "a=@", "a=" + "[" * 99999]
)
def test_refused(text):
    with pytest.raises(ValueError, match="."):
        parse_key_value(text)


def test_files_are_loaded(tmp_path):
    Image.new("RGBA", (3, 2), (1, 2, 3, 4)).save("p.png")
    (tmp_path / "v.json").write_text("[1, 2]")
    (tmp_path / "t.txt").write_text("häßlich\n", encoding="utf-8")
    picture = parse_key_value("image=@p.png")
    assert (picture.value.mode, picture.value.size, picture.file) == ("RGB", (3, 2), "@p.png")
    assert parse_key_value("x=@v.json").value == [1, 2]
    assert parse_key_value("x=@t.txt").value == "häßlich"


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    with pytest.raises(ValueError, match=r"p\.png cannot be read"):
        parse_key_value("image=@p.png")


def test_a_key_comes_once_unless_with_files():
    with pytest.raises(click.UsageError, match="sets 'a' twice"):
        as_table([KeyValue("a", 1), KeyValue("a", 2)], "--extra-args")
    three = [KeyValue("image", number, f"@{number}.png") for number in (1, 2, 3)]
    assert as_table(three, "--extra-args") == {"image": [1, 2, 3]}
    assert files_of([KeyValue("x", 1), *three[:1]]) == {"image": "@1.png"}
    assert files_of(three) == {"image": ["@1.png", "@2.png", "@3.png"]}


def test_one_file_that_holds_a_list_stays_one_member():
    pairs = [KeyValue("x", [1, 2], "@a.json"), KeyValue("x", [3], "@b.json")]
    assert as_table(pairs, "--extra-args") == {"x": [[1, 2], [3]]}
