"""The random numbers of one task: what torch's default generators are for a program that runs on its own."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


class TaskRandom:
    """Generators that begin as `torch.manual_seed(seed)` would leave torch's default ones.

    Args:
        seed: Seed of the request.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        # Seeds that the pipeline has set since, by type of device.
        self._seeds: dict[str, int] = {}
        self._generators: dict[torch.device, torch.Generator] = {}

    def generator(self, device: torch.device = CPU) -> torch.Generator:
        """Return what stands for the default generator of a device; without an index, of the current one."""
        index: int | None = device.index  # torch's stubs know no None here
        if device.type != "cpu" and index is None:
            device = torch.device(device.type, _current_index(device))
        generator = self._generators.get(device)
        if generator is None:
            generator = torch.Generator(device)
            generator.manual_seed(self._seeds.get(device.type, self._seed))
            self._generators[device] = generator
        return generator

    def seed_all(self, device_type: str, seed: int) -> None:
        """Seed the generators of all devices of a type, whether they were used yet or not."""
        self._seeds[device_type] = seed
        for device, generator in self._generators.items():
            if device.type == device_type:
                generator.manual_seed(seed)


def _current_index(device: torch.device) -> int:
    # Apple's have one device, and no such function.
    current = getattr(torch.get_device_module(device), "current_device", None)
    return 0 if current is None else int(current())
