"""Pipelines that hand something to the model that all requests share, or change it for the time of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest

STEPS = 6


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.strength: Any = 1.0
        self.register_buffer("offset", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.offset, torch.Tensor)
        return x * self.strength + self.offset


class Net(ModelMixin, ConfigMixin):  # type: ignore[misc]
    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.block = Block()
        self.condition: Any = 0.0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.block(x * 0.9) * self.scale + self.condition


Change = Callable[[Any, float], None]


def by_an_attribute(net: Any, value: float) -> None:
    net.condition = value


def by_a_tensor(net: Any, value: float) -> None:
    net.condition = torch.full((1, 4), value)


def by_an_attribute_of_a_part(net: Any, value: float) -> None:
    net.block.strength = value


def by_weights(net: Any, value: float) -> None:
    with torch.no_grad():
        net.scale.fill_(value)


def by_data_of_weights(net: Any, value: float) -> None:
    net.scale.data.fill_(value)


def by_another_parameter(net: Any, value: float) -> None:
    net.scale = torch.nn.Parameter(torch.full((1,), value))


def by_a_buffer(net: Any, value: float) -> None:
    net.block.offset.fill_(value)


WAYS: list[Change] = [
    by_an_attribute,
    by_a_tensor,
    by_an_attribute_of_a_part,
    by_weights,
    by_data_of_weights,
    by_another_parameter,
    by_a_buffer,
]


class Pipe(DiffusionPipeline):  # type: ignore[misc]
    change: Change

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.register_modules(net=net)
        self.history: list[torch.Tensor] = []
        self.notes: dict[str, Any] = {}

    @torch.no_grad()
    def __call__(self, generator: Any = None, output_type: str = "np", return_dict: bool = True, value: float = 1.0):  # type: ignore[no-untyped-def]
        x = torch.randn(1, 4, generator=generator)
        self.history.clear()
        self.notes["value"] = value
        self.change(self.net, value)
        for step in range(STEPS):
            self.history.append(self.net(x, torch.tensor([float(step)])))
            x = x + 0.1 * self.history[-1] + 0.05 * (self.history[-2] if step else 0) * self.notes["value"]
        return ImagePipelineOutput(x.numpy())


def build(change: Change) -> Pipe:
    pipe = Pipe(Net().eval())
    pipe.change = change
    return pipe


def nothing(_net: Any, _value: float) -> None:
    pass


@pytest.mark.parametrize("stacking", ["verified", "off"])
@pytest.mark.parametrize("change", [nothing, *WAYS])
def test_each_request_gets_its_own(change: Change, stacking: Any) -> None:
    values = [0.5, 1.5, 2.5, 3.5]
    wanted = []
    for seed, value in enumerate(values):
        generator = torch.Generator().manual_seed(seed)
        wanted.append(build(change)(generator=generator, value=value).images)
    with DiffusionEngine(OmniDiffusionConfig(stacking=stacking), pipeline=build(change)) as engine:
        for _ in range(2):
            outputs = engine.step(
                [OmniDiffusionRequest(seed=seed, extra_args={"value": value}) for seed, value in enumerate(values)]
            )
            for output, expected in zip(outputs, wanted, strict=True):
                images = output.raise_for_error().output["images"]
                assert not output.metrics.suspect
                np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-5)
