"""Values on their way to another process: pickled, with the memory of tensors, arrays and pictures left out of it.

Pickle protocol 5 hands large buffers over by themselves, so that a transport can move them without a copy. torch's own
pickling does not take part in that, and PIL's copies; here tensors on the CPU and pictures do, in their own dtype.

Pickle runs code of whoever sent it: only read what came from a process of one's own, or over a connection that has
proved whose it is.
"""

from __future__ import annotations

import contextlib
import copyreg
import io
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from omni_core.errors import RPCError

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
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    try:
        _Pickler(stream, buffers).dump(value)
    except Exception as error:
        raise RPCError(_explain(value, error)) from error
    return stream.getvalue(), buffers


def loads(data: bytes | memoryview, buffers: Sequence[Any] = ()) -> Any:
    """Return a value that `dumps` has pickled. Tensors and arrays are views on `buffers`: they need no copy.

    Raises whatever unpickling raises.
    """
    return pickle.loads(data, buffers=buffers)  # noqa: S301  # see the module's docstring


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, buffers: list[pickle.PickleBuffer]) -> None:
        super().__init__(stream, protocol=5, buffer_callback=self._keep_large)
        self._buffers = buffers

    def _keep_large(self, buffer: pickle.PickleBuffer) -> bool:
        """Return whether the buffer goes into the pickle."""
        with buffer.raw() as raw:
            if raw.nbytes < _SMALL:
                return True
        self._buffers.append(buffer)
        return False

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


# --- pictures --------------------------------------------------------------------------------------------------


def _reduce_pil(value: Any) -> Any:
    image_module = sys.modules.get("PIL.Image")
    if image_module is None or type(value) is not image_module.Image or value.mode == "P":
        return None
    info = {key: item for key, item in value.info.items() if isinstance(item, (str, bytes, int, float, bool, tuple))}
    return _make_picture, (value.mode, value.size, pickle.PickleBuffer(value.tobytes()), info)


def _make_picture(mode: str, size: tuple[int, int], buffer: Any, info: dict[Any, Any]) -> Any:
    from PIL import Image

    picture = Image.frombytes(mode, size, bytes(buffer))
    picture.info.update(info)
    return picture


# By the top package of the type, so that nothing is imported and most values cost one look.
_REDUCERS: dict[str, Callable[[Any], Any]] = {"torch": _reduce_torch, "PIL": _reduce_pil}


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
    path, part, reason = _culprit("", value, error)
    where = f" (at {path})" if path else ""
    return f"a {type(part).__name__}{where} cannot be pickled: {type(reason).__name__}: {reason}"


def _culprit(path: str, value: Any, error: Exception) -> tuple[str, Any, Exception]:
    """Return path, value and error of the smallest part that cannot be pickled."""
    for name, part in _parts(value):
        try:
            _Pickler(io.BytesIO(), []).dump(part)
        except Exception as reason:
            return _culprit(f"{path}{name}" if path or not name.startswith(".") else name[1:], part, reason)
    return path, value, error


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{key!r}]", item
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
