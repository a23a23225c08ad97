"""What travels with calls: nothing, much, and everything in its own type."""

from __future__ import annotations

from typing import Any

import pytest

from omni_core.testing import calls
from omni_core.testing.base import ConformanceBase
from omni_core.testing.families import picture_to_start_from

_LARGE = 32 * 2**20


class Payloads(ConformanceBase):
    """Payloads of calls."""

    theme = "payloads"

    def _echo(self, value: Any) -> Any:
        return self.shared_engine().collective_rpc(calls.echo, self.patience_s, (value,), unique_reply_rank=0)

    @pytest.mark.parametrize("value", [None, b"", "", [], {}, 0, ()], ids=repr)
    def test_nothing(self, value: Any) -> None:
        """Empty values come back as they are."""
        result = self._echo(value)
        assert result == value
        assert type(result) is type(value)

    def test_empty_arrays_and_tensors(self) -> None:
        """Arrays and tensors without elements keep shape and type."""
        import numpy as np
        import torch

        array = self._echo(np.zeros((0, 3), np.float32))
        assert (array.shape, array.dtype) == ((0, 3), np.float32)
        tensor = self._echo(torch.zeros(2, 0, dtype=torch.bfloat16))
        assert (tuple(tensor.shape), tensor.dtype) == ((2, 0), torch.bfloat16)

    def test_a_huge_argument(self) -> None:
        """An argument of 32 MB arrives whole."""
        import numpy as np

        array = np.full(_LARGE, 3, np.uint8)
        total = self.shared_engine().collective_rpc(calls.add_up, self.patience_s, (array,), unique_reply_rank=0)
        assert total == 3 * _LARGE

    def test_a_huge_result(self) -> None:
        """A result of 32 MB arrives whole."""
        array = self.shared_engine().collective_rpc(calls.make_array, self.patience_s, (_LARGE, 7), unique_reply_rank=0)
        assert array.shape == (_LARGE,)
        assert int(array.sum()) == 7 * _LARGE

    def test_a_huge_value_both_ways(self) -> None:
        """A tensor of 32 MB that goes there and back is the same."""
        import torch

        tensor = torch.arange(_LARGE // 4, dtype=torch.float32).reshape(2, -1)
        assert torch.equal(self._echo(tensor), tensor)

    def test_a_result_is_not_overwritten_by_later_ones(self) -> None:
        """Results that are kept stay as they are, however many large ones follow; and they can be changed."""
        engine = self.shared_engine()

        def make(fill: int) -> Any:
            return engine.collective_rpc(calls.make_array, self.patience_s, (4 * 2**20, fill), unique_reply_rank=0)

        kept = [make(fill) for fill in range(6)]
        for fill in range(100, 106):
            make(fill)
        for fill, array in enumerate(kept):
            assert array.min() == array.max() == fill
            array[0] = 99
            assert array[0] == 99

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int64", "bool"])
    def test_tensors_keep_their_type(self, dtype: str) -> None:
        """A tensor arrives in its own type, on the way there and on the way back."""
        import torch

        engine = self.shared_engine()
        kind = getattr(torch, dtype)
        there = engine.collective_rpc(
            calls.describe_tensor, self.patience_s, (torch.ones(3, 70, dtype=kind),), unique_reply_rank=0
        )
        assert there == (f"torch.{dtype}", (3, 70), 210.0)
        back = engine.collective_rpc(calls.make_tensor, self.patience_s, ((2, 5000), dtype), unique_reply_rank=0)
        assert back.dtype == kind
        assert tuple(back.shape) == (2, 5000)
        assert bool((back == torch.ones(1, dtype=kind)).all())

    def test_nested_values(self) -> None:
        """Pictures, arrays and tensors inside of lists and dicts come back equal, strided and transposed ones too."""
        import numpy as np
        import torch

        value = {
            "picture": picture_to_start_from(64),
            "list": [np.arange(5000)[::2], (torch.arange(6000.0).reshape(60, 100).t(), "text", 1.5)],
        }
        result = self._echo(value)
        assert result["picture"].tobytes() == value["picture"].tobytes()
        assert np.array_equal(result["list"][0], value["list"][0])
        assert torch.equal(result["list"][1][0], value["list"][1][0])
        assert result["list"][1][1:] == ("text", 1.5)
