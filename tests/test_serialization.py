"""What goes to another process comes out there as it was, with its memory out of band."""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass
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
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


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


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"args": (1, threading.Lock()), "kwargs": None}, "['args'][1]"),
        ([Part({"deep": Part(threading.Lock())})], "[0].inner['deep'].inner"),
        (threading.Lock(), "a lock cannot"),
    ],
)
def test_what_cannot_be_pickled_is_named(value: Any, where: str) -> None:
    with pytest.raises(RPCError) as caught:
        dumps(value)
    assert where in str(caught.value)
    assert "lock" in str(caught.value)
    assert isinstance(caught.value.__cause__, (TypeError, pickle.PicklingError))
