"""Requests that bring something with them that could harm others: a table, and the test that tries them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from omni_core import RequestHandle
from omni_core.errors import OmniError, RequestError
from omni_core.testing.base import ConformanceBase
from omni_core.testing.bounds import is_healthy, wait_until
from omni_core.testing.injection import fault
from omni_core.testing.left_behind import CHANGES, restored
from omni_core.testing.odd_values import (
    ODD_VALUES,
    IncomparableText,
    RaisesWhenRead,
    UnhashableFloat,
    UnhashableInt,
    UnhashableText,
)

Gets = Literal["its picture", "an error", "a refusal", "any end"]


@dataclass(frozen=True)
class Attack:
    """A request that could harm others.

    Attributes:
        fields: Makes what it has besides the fields of a harmless one.
        gets: What becomes of it. A refusal comes at once; any end: what it is depends on the executor.
    """

    fields: Callable[[], dict[str, Any]]
    gets: Gets = "any end"


def _argument(make: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {"extra_args": {"joint_attention_kwargs": {"z": make()}}}


def _note(make: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {"note": make()}


def _fault(**plan: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"fault": fault(**plan)}


# Which end the output of these comes to depends on whether it is pickled.
_ODD_OUTPUTS = (
    "lock",
    "generator",
    "lambda",
    "object that cannot be pickled",
    "object that raises when read",
    "object that raises",
    "list that holds itself",
    "list 5,000 deep",
    "text that cannot be hashed",
    "module",
    "tensor with gradient",
    "sparse tensor",
)

ATTACKS: dict[str, Attack] = {
    # What reaches the denoiser is compared, to find out which calls can be stacked.
    **{f"to the denoiser: {name}": Attack(_argument(make)) for name, make in ODD_VALUES.items()},
    # What only the pipeline sees is sent.
    **{f"to the pipeline: {name}": Attack(_note(make)) for name, make in ODD_VALUES.items()},
    "to the pipeline: object that ends the process when read": Attack(_note(lambda: RaisesWhenRead("end"))),
    # What comes back is sent as well.
    **{f"returned: {name}": Attack(_fault(kind="output", what=name)) for name in _ODD_OUTPUTS},
    # Fields of the request.
    "seed of an odd type": Attack(lambda: {"seed": UnhashableInt(7)}, "its picture"),
    "priority of an odd type": Attack(lambda: {"priority": UnhashableInt(1)}, "its picture"),
    "steps of an odd type": Attack(lambda: {"num_inference_steps": UnhashableInt(4)}, "its picture"),
    "guidance of an odd type": Attack(lambda: {"guidance_scale": UnhashableFloat(4.0)}, "its picture"),
    "time limit of an odd type": Attack(lambda: {"timeout_s": UnhashableFloat(50.0)}, "its picture"),
    "id of an odd type": Attack(lambda: {"request_id": UnhashableText("odd-id")}, "its picture"),
    "id that cannot be compared": Attack(lambda: {"request_id": IncomparableText("odd-id")}, "its picture"),
    "prompt of an odd type": Attack(lambda: {"prompt": UnhashableText("a red seven")}, "its picture"),
    "name of an argument of an odd type": Attack(
        lambda: {"extra_args": {IncomparableText("max_sequence_length"): 16}}, "its picture"
    ),
    "empty prompt": Attack(lambda: {"prompt": ""}, "its picture"),
    "prompt of a surrogate": Attack(lambda: {"prompt": "a red \ud800 seven"}),
    "prompt of a million characters": Attack(lambda: {"prompt": "seven " * 200_000}, "a refusal"),
    "time limit beyond all waits": Attack(lambda: {"timeout_s": 1e10}, "a refusal"),
    "time limit of nothing": Attack(lambda: {"timeout_s": 1e-9, "num_inference_steps": 5000}, "an error"),
    "time limit amid the steps": Attack(lambda: {"timeout_s": 0.05, "num_inference_steps": 5000}, "an error"),
    "size that is none": Attack(lambda: {"height": 33}, "an error"),
    "size of the sky": Attack(lambda: {"height": 65536, "width": 65536}, "a refusal"),
    "outputs beyond all memory": Attack(lambda: {"num_outputs_per_prompt": 1024, "height": 4096}, "a refusal"),
    "guidance beyond all numbers": Attack(lambda: {"guidance_scale": 1e300}),
    "unknown form of output": Attack(lambda: {"output_type": "telex"}),
    "seed beyond all": Attack(lambda: {"seed": 2**63 - 1}, "its picture"),
    # What goes wrong in the pipeline.
    "raises": Attack(_fault(kind="raise"), "an error"),
    "raises what cannot be pickled": Attack(_fault(kind="raise-unpicklable"), "an error"),
    "out of memory": Attack(_fault(kind="out-of-memory"), "an error"),
    "not a number": Attack(_fault(kind="nan"), "any end"),
    **{f"leaves behind: {name}": Attack(_fault(kind="leave", what=name)) for name in CHANGES},
}


class Poison(ConformanceBase):
    """Requests that could harm others."""

    theme = "poison"

    @pytest.mark.parametrize("name", ATTACKS)
    def test_what_one_request_brings_harms_no_other(self, name: str) -> None:
        """Three others beside it and the next one get their pictures, and it comes to an end of its own."""
        with restored():  # where the worker is in this process
            self._attack(ATTACKS[name])

    def _attack(self, attack: Attack) -> None:
        engine = self.shared_engine()
        innocent = [self.request(seed=seed) for seed in range(3)]
        handles = engine.submit_all(innocent[:2])
        culprit: RequestHandle | None = None
        try:
            culprit = engine.submit(self.request(**attack.fields()))
        except RequestError:
            assert attack.gets in ("a refusal", "any end")
        else:
            assert attack.gets != "a refusal"
        handles += engine.submit_all(innocent[2:])
        for request, handle in zip(innocent, handles, strict=True):
            self.assert_right(self.result(handle), request)
        if culprit is not None:
            output = self.result(culprit)
            if attack.gets == "its picture":
                output.raise_for_error()
            elif attack.gets == "an error" or output.finish_reason != "finished":
                assert isinstance(output.error, OmniError)
                assert culprit.request_id in str(output.error)
        self.assert_serves(engine)
        wait_until(lambda: is_healthy(engine), "the engine is healthy again", self.patience_s)
