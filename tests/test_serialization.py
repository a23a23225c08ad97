"""What goes to another process comes out there as it was, with its memory out of band."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from omni_core.errors import RPCError
from omni_core.serialization import dumps, loads

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


def trip(value: Any, writable: bool = True) -> Any:
    data, buffers = dumps(value)
    kind = bytearray if writable else bytes
    return loads(data, [kind(buffer.raw()) for buffer in buffers])


def raw(tensor: torch.Tensor) -> bytes:
    flat = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    base = torch.randint(0, 100, [2 * size for size in shape], generator=torch.Generator().manual_seed(1)).to(dtype)
    for axis, size in enumerate(shape):
        how = draw(st.sampled_from(["first", "every second", "shifted"]))
        start, step = {"first": (0, 1), "every second": (0, 2), "shifted": (size // 2, 1)}[how]
        base = base[(slice(None),) * axis + (slice(start, start + size * step, step),)]
    if draw(st.booleans()) and len(shape) >= 2:
        base = base.transpose(0, 1)
    return base


@given(tensors(), st.booleans())
def test_tensors_of_any_dtype_and_stride(tensor: torch.Tensor, writable: bool) -> None:
    found = trip({"nested": [tensor]}, writable)["nested"][0]
    assert found.dtype == tensor.dtype
    assert found.shape == tensor.shape
    assert raw(found) == raw(tensor)


NUMBERS = hnp.boolean_dtypes() | hnp.integer_dtypes() | hnp.floating_dtypes() | hnp.complex_number_dtypes()


@given(hnp.arrays(NUMBERS, hnp.array_shapes(max_dims=3, max_side=30)))
def test_arrays(array: np.ndarray[Any, Any]) -> None:
    found = trip(array)
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "F", "I;16", "P"])
def test_pictures(mode: str) -> None:
    picture = Image.effect_noise((40, 30), 50).convert(mode if mode != "I;16" else "I").convert(mode)
    picture.info["prompt"] = "a red seven"
    found = trip(picture)
    assert (found.mode, found.size, found.tobytes()) == (picture.mode, picture.size, picture.tobytes())
    assert found.convert("RGB").tobytes() == picture.convert("RGB").tobytes()
    assert found.info["prompt"] == "a red seven"
    found.putpixel((0, 0), 0)  # it is nobody else's


def test_a_picture_opened_from_a_file(tmp_path: Path) -> None:
    Image.effect_noise((90, 80), 50).convert("RGB").save(tmp_path / "a.png", dpi=(72, 72))
    with Image.open(tmp_path / "a.png") as picture:
        picture.info["handle"] = threading.Lock()  # such things are left behind
        data, buffers = dumps(picture)
        found = loads(data, buffers)
        assert found.tobytes() == picture.tobytes()
        assert found.info["dpi"] == picture.info["dpi"]
    assert "handle" not in found.info
    assert len(data) < 1000


def test_memory_is_handed_over_and_not_copied() -> None:
    tensor, array = torch.arange(10_000.0), np.arange(10_000.0)
    data, buffers = dumps({"tensor": tensor, "array": array, "small": torch.zeros(3)})
    assert len(buffers) == 2
    assert len(data) < 2000
    memory = [bytearray(buffer.raw()) for buffer in buffers]
    found = loads(data, memory)
    memory[0][:4] = np.float32(7).tobytes()
    memory[1][:8] = np.float64(8).tobytes()
    assert found["tensor"][0] == 7
    assert found["array"][0] == 8
    found["tensor"][1] = 9
    assert np.frombuffer(memory[0], dtype=np.float32)[1] == 9


@pytest.mark.parametrize("cut", [np.s_[::2], np.s_[:, 3:50], np.s_[::-1]], ids=["rows", "columns", "backwards"])
def test_arrays_with_gaps_leave_their_memory_out_too(cut: Any) -> None:
    array = np.arange(40_000.0).reshape(200, 200)[cut]
    data, buffers = dumps(array)
    assert len(data) < 500
    assert [buffer.raw().nbytes for buffer in buffers] == [array.nbytes]
    assert np.array_equal(loads(data, buffers), array)


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=9000) | tensors(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and raw(left) == raw(right)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and bool(left == right)


@given(VALUES)
def test_nested_values(value: Any) -> None:
    assert same(value, trip(value))


def test_a_tensor_that_is_there_twice_is_one_tensor_again() -> None:
    tensor = torch.zeros(5000)
    first, second = trip([tensor, tensor])
    first[0] = 1
    assert second[0] == 1


def test_parameters_and_gradients_stay_behind() -> None:
    found = trip([torch.nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True) * 2])
    assert not any(tensor.requires_grad for tensor in found)
    assert torch.equal(found[1], torch.full((2,), 2.0))


def test_functions_that_only_this_process_has() -> None:
    offset = 3

    class Local:
        value = 5

    found = trip([lambda x: x + offset, Local, len, Image.new])
    assert found[0](4) == 7
    assert found[1].value == 5
    assert found[2:] == [len, Image.new]


@dataclass
class Part:
    inner: Any


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


class Refuses:
    def __reduce__(self) -> Any:
        raise Silent


def in_a_circle() -> Part:
    part = Part([None, threading.Lock()])
    part.inner[0] = part
    return part


def deep() -> Any:
    value: Any = threading.Lock()
    for _ in range(100):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"args": (1, threading.Lock()), "kwargs": None}, "['args'][1]"),
        ([Part({"deep": Part(threading.Lock())})], "[0].inner['deep'].inner"),
        (threading.Lock(), "a lock cannot"),
        ({("a", threading.Lock()): 1}, "(a key)[1]"),
        (Slotted(threading.Lock()), "at inner"),
        (in_a_circle(), "at inner[1]"),
        (deep(), "[…]"),
    ],
)
def test_what_cannot_be_pickled_is_named(value: Any, where: str) -> None:
    with pytest.raises(RPCError) as caught:
        dumps(value)
    assert where in str(caught.value)
    assert "lock" in str(caught.value)
    assert isinstance(caught.value.__cause__, (TypeError, pickle.PicklingError))


def test_an_error_without_a_message_is_named_too() -> None:
    with pytest.raises(RPCError, match=r"a Refuses \(at \[0\]\) cannot be pickled: Silent"):
        dumps([Refuses()])


def test_nesting_beyond_what_pickle_does_is_an_error_of_ours() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(RPCError, match="RecursionError"):
        dumps(value)
    while value:  # else taking it apart recurses as deeply
        value = value[0]


def test_without_cloudpickle_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(RPCError, match="install cloudpickle"):
        dumps({"callback": lambda: None})


def test_the_module_does_not_import_torch() -> None:
    code = "import sys, omni_core.serialization as s; s.loads(*s.dumps([1, b'x'])); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_single_number_of_an_odd_stride() -> None:
    found = trip(torch.tensor([45.0, 46.0], dtype=torch.float64)[::2])
    assert found.tolist() == [45.0]
