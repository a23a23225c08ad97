"""Values on their way to another process: pickled, with the memory of tensors, arrays and pictures left out of it.

Pickle protocol 5 hands large buffers over by themselves, so that a transport can move them without a copy. torch's own
pickling does not take part in that, nor does PIL's, nor numpy's where an array has gaps; here tensors, pictures and all
arrays do, in their own dtype. Tensors on an accelerator arrive on the CPU.

Unpickling runs code that the sender chose: only read what came from a process of one's own, or over a connection that
has proved whose it is.
"""

from __future__ import annotations

import contextlib
import copyreg
import io
import pickle
import reprlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from omni_core.error_text import described_error
from omni_core.errors import RPCError

# Characters of a long path that are shown at its start and its end.
_SHOWN = 100
# Below this many bytes a buffer is cheaper inside the pickle than by itself.
_SMALL = 4096


def dumps(value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Pickle a value.

    Functions and classes that only this process has (those of the script that was started, lambdas, closures) travel
    by value, with cloudpickle.

    Returns:
        The pickle, and the contiguous buffers that belong to it, in order.

    Raises:
        RPCError: A part of the value cannot be pickled; the message says which, and why.
    """
    if _is_plain(value):
        return pickle.dumps(value, 5), []
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    try:
        _Pickler(stream, 5, buffer_callback=partial(_keep_large, buffers)).dump(value)
    except Exception as error:
        raise RPCError(_explain(value, error)) from error
    return stream.getvalue(), buffers


_PLAIN = frozenset({str, int, float, bool, type(None)})
_MOST_PLAIN = 16


def _is_plain(value: Any) -> bool:
    """Whether pickle's own way is as good: it takes a tenth of the time, and most calls are a name and numbers."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is not tuple or len(value) > _MOST_PLAIN:
        return False
    for item in value:
        kind = type(item)
        if kind not in _PLAIN and not (kind is tuple and _is_plain(item)):
            return False
    return True


def loads(data: bytes | bytearray | memoryview, buffers: Sequence[Any] = ()) -> Any:
    """Return a value that `dumps` has pickled. Tensors and arrays are views on `buffers`: they need no copy.

    Raises whatever unpickling raises.
    """
    return pickle.loads(data, buffers=buffers)  # noqa: S301  # see the module's docstring


def _keep_large(buffers: list[pickle.PickleBuffer], buffer: pickle.PickleBuffer) -> bool:
    """Put a large buffer into the list; return whether it goes into the pickle instead."""
    with buffer.raw() as raw:
        if raw.nbytes < _SMALL:
            return True
    buffers.append(buffer)
    return False


class _Pickler(pickle.Pickler):
    # Without an __init__ of its own, which would be a good part of what a small call costs.

    def reducer_override(self, value: Any) -> Any:
        reduce = _REDUCERS.get(type(value).__module__.partition(".")[0])
        if reduce is not None and (reduced := reduce(value)) is not None:
            return reduced
        if _is_local(value):
            return _by_value(value)
        return NotImplemented


# --- tensors ---------------------------------------------------------------------------------------------------


def _reduce_torch(value: Any) -> Any:
    torch = sys.modules["torch"]
    if not isinstance(value, torch.Tensor) or type(value) not in (torch.Tensor, torch.nn.Parameter):
        return None
    if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        return None
    # Bytes, because numpy knows neither bfloat16 nor float8.
    tensor = value.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
    if tensor.numel() == 1:  # contiguous whatever its stride, which a view as bytes does not take
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    raw = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0, dtype=torch.uint8)
    return _make_tensor, (pickle.PickleBuffer(raw.numpy()), str(value.dtype).removeprefix("torch."), tuple(value.shape))


def _make_tensor(buffer: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    if memoryview(buffer).nbytes == 0:
        return torch.empty(shape, dtype=kind)
    if memoryview(buffer).readonly:
        buffer = bytearray(buffer)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(kind).reshape(shape)


# --- arrays ----------------------------------------------------------------------------------------------------


def _reduce_numpy(value: Any) -> Any:
    numpy = sys.modules["numpy"]
    if type(value) is not numpy.ndarray or value.dtype.hasobject:
        return None
    if value.flags.c_contiguous or value.flags.f_contiguous:
        return None  # numpy does it
    return value.copy(order="C").__reduce_ex__(5)


# --- pictures --------------------------------------------------------------------------------------------------


def _reduce_pil(value: Any) -> Any:
    image_module = sys.modules.get("PIL.Image")
    if image_module is None or not isinstance(value, image_module.Image):
        return None
    value.load()  # one that was opened from a file may only then know its mode
    if value.mode in ("P", "PA"):
        return None  # with its palette
    info = {key: item for key, item in value.info.items() if _is_picklable(item)}
    return _make_picture, (value.mode, value.size, pickle.PickleBuffer(value.tobytes()), info)


def _make_picture(mode: str, size: tuple[int, int], buffer: Any, info: dict[Any, Any]) -> Any:
    from PIL import Image

    picture = Image.frombytes(mode, size, buffer)
    picture.info.update(info)
    return picture


def _is_picklable(item: Any) -> bool:
    if isinstance(item, (str, bytes, int, float, type(None))):
        return True
    try:
        pickle.dumps(item)
    except Exception:  # what a library left in there is not what somebody wants to send
        return False
    return True


# By the top package of the type, so that nothing is imported and most values cost one look.
_REDUCERS: dict[str, Callable[[Any], Any]] = {"torch": _reduce_torch, "numpy": _reduce_numpy, "PIL": _reduce_pil}


# --- functions and classes that only this process has ------------------------------------------------------------


def _is_local(value: Any) -> bool:
    """Whether a function or class cannot be found by its name in another process."""
    if not isinstance(value, (type, _FUNCTION)):
        return False
    return value.__module__ == "__main__" or "<" in value.__qualname__


_FUNCTION = type(_is_local)


def _by_value(value: Any) -> Any:
    try:
        import cloudpickle
    except ModuleNotFoundError as error:
        raise pickle.PicklingError(
            f"{value!r} belongs to this process alone. Put it into a module that workers can import, "
            "or install cloudpickle."
        ) from error
    return pickle.loads, (cloudpickle.dumps(value),)


# --- what could not be pickled ------------------------------------------------------------------------------------


def _explain(value: Any, error: Exception) -> str:
    path, part, reason = _culprit(value, error)
    if len(path) > 2 * _SHOWN:
        path = f"{path[:_SHOWN]}[…]{path[-_SHOWN:]}"
    where = f" (at {path})" if path else ""
    return f"a {type(part).__name__}{where} cannot be pickled: {described_error(reason)}"


def _culprit(value: Any, error: Exception) -> tuple[str, Any, Exception]:
    """Return path, value and error of the smallest part that cannot be pickled."""
    path = ""
    tried = {id(value): value}  # a part may refer to what it is a part of
    while True:
        for name, part in _parts(value):
            if id(part) in tried:
                continue
            tried[id(part)] = part
            try:
                _Pickler(io.BytesIO(), 5, buffer_callback=partial(_keep_large, [])).dump(part)
            except Exception as reason:
                path += name
                value, error = part, reason
                break
        else:
            return path.removeprefix("."), value, error


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{reprlib.repr(key)}]", item
            yield " (a key)", key
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif not isinstance(value, (type, str, bytes)) and type(value).__module__ != "builtins":
        with contextlib.suppress(TypeError):
            for key, item in vars(value).items():
                yield f".{key}", item
        for slot in copyreg._slotnames(type(value)):  # type: ignore[attr-defined]
            if hasattr(value, slot):
                yield f".{slot}", getattr(value, slot)
