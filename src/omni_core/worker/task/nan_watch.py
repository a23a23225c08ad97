"""Telling a picture of numbers from one that was made of NaN.

NaN that is made into 8-bit pixels becomes black, and the pixels do not tell. What tells is both together: the tensor
that the picture was made of holds NaN, and numpy was asked to make a whole number of one. Neither alone is an error: a
callback may compute what it likes, and a pipeline may decode again in a higher precision.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from omni_core.worker.pipeline.output import NAN_MESSAGE, holds_nan, is_exact


class NanWatch:
    """Watches one request's way from the last denoiser call to the output."""

    def __init__(self) -> None:
        self._is_decoding = False
        self._invalid: FloatingPointError | None = None
        self._denoised: Any = None
        self._decoded: list[torch.Tensor] = []
        self._mode = "warn"
        self._call: Any = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Notice invalid arithmetic of numpy; what else comes of it is as before."""
        self._mode, self._call = np.geterr()["invalid"], np.geterrcall()
        with np.errstate(invalid="call", call=self._note_invalid):
            yield

    def forget(self) -> None:
        """A denoiser is called: what was decoded before is no output."""
        self._is_decoding = False
        self._invalid = self._denoised = None
        self._decoded.clear()

    def note_denoised(self, result: Any) -> None:
        """A denoiser gave `result`; it may have been the last call."""
        self._is_decoding = True
        self._denoised = result

    def note_decoded(self, result: Any) -> None:
        """An autoencoder gave `result`."""
        if self._is_decoding:
            # Found out at the end: asking a GPU now would wait for it.
            self._decoded.extend(tensor.detach().isnan().any() for tensor in _floating_tensors(result))

    def judge(self, fields: Mapping[str, Any], sample: Any) -> None:
        """Return if an output is made of numbers.

        Args:
            fields: What the pipeline gave.
            sample: What the scheduler's last step gave.

        Raises:
            FloatingPointError: It holds NaN, or was made of NaN.
        """
        if any(holds_nan(value) for value in fields.values()):
            raise FloatingPointError(NAN_MESSAGE)
        if self._invalid is None or all(is_exact(value) for value in fields.values()):
            return
        last = [*_floating_tensors(self._denoised), *_floating_tensors(sample)]
        if any(map(bool, self._decoded)) or any(bool(tensor.isnan().any()) for tensor in last):
            raise FloatingPointError(NAN_MESSAGE) from self._invalid

    def _note_invalid(self, kind: str, flag: int) -> None:
        if self._is_decoding and self._invalid is None:
            where = "".join(traceback.format_stack(sys._getframe(1)))
            self._invalid = FloatingPointError(f"numpy met an {kind}:\n{where}")
        if self._mode == "warn":
            warnings.warn(f"{kind} encountered", RuntimeWarning, stacklevel=2)
        elif self._mode == "raise":
            raise FloatingPointError(f"{kind} encountered")
        elif self._mode == "print":
            sys.stderr.write(f"Warning: {kind} encountered\n")
        elif self._mode == "log":
            self._call.write(f"Warning: {kind} encountered\n")
        elif self._mode == "call" and callable(self._call):
            self._call(kind, flag)


def _floating_tensors(value: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
