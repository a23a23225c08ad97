"""Pipelines of our own that copy, re-create and replace their scheduler and their denoiser while they run."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image

from small_pipelines.case import Case

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpm": DPMSolverMultistepScheduler,
    "ddpm": DDPMScheduler,
    "unipc": UniPCMultistepScheduler,
    "heun": HeunDiscreteScheduler,
    "lcm": LCMScheduler,
}


def unet(seed: int = 5) -> Any:
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ).eval()


class Rearranging(DiffusionPipeline):
    """Denoises 8 x 8 pixels; a subclass says what it does with its parts first."""

    shows_progress = True

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        num_inference_steps: int = 4,
        generator: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        sample = self.denoise(torch.randn(1, 3, 8, 8, generator=generator), num_inference_steps, generator)
        pixels = (sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        if output_type == "np":
            return ImagePipelineOutput(pixels)
        return ImagePipelineOutput([Image.fromarray((picture * 255).round().astype(np.uint8)) for picture in pixels])

    def denoise(self, sample: Any, steps: int, generator: Any) -> Any:
        self.rearrange()
        return self.loop(self.scheduler, sample, steps, generator)

    def rearrange(self) -> None:
        """Change the parts of this pipeline."""

    def loop(self, scheduler: Any, sample: Any, steps: int, generator: Any) -> Any:
        scheduler.set_timesteps(steps)
        sample = sample * scheduler.init_noise_sigma
        for timestep in self.progress(scheduler.timesteps):
            sample = self.step(scheduler, timestep, sample, generator)
        return sample

    def progress(self, timesteps: Any) -> Any:
        return self.progress_bar(timesteps) if self.shows_progress else timesteps

    def step(self, scheduler: Any, timestep: Any, sample: Any, generator: Any) -> Any:
        noise = self.unet(scheduler.scale_model_input(sample, timestep), timestep).sample
        takes = {"generator": generator} if takes_generator(scheduler) else {}
        return scheduler.step(noise, timestep, sample, **takes).prev_sample


def takes_generator(scheduler: Any) -> bool:
    """Whether `step` takes a generator, found out as stock pipelines do."""
    import inspect

    return "generator" in inspect.signature(scheduler.step).parameters


class DeepCopied(Rearranging):
    """Uses a deep copy of its scheduler, made before the first is set up, in place of it."""

    def rearrange(self) -> None:
        self.scheduler = copy.deepcopy(self.scheduler)


class Copied(Rearranging):
    def rearrange(self) -> None:
        self.scheduler = copy.copy(self.scheduler)


class Recreated(Rearranging):
    """Makes its scheduler anew, of the class that it has."""

    def rearrange(self) -> None:
        self.scheduler = type(self.scheduler).from_config(self.scheduler.config)


class Replaced(Rearranging):
    """Puts one of another class, which it knows by name, in place of its scheduler."""

    def rearrange(self) -> None:
        self.scheduler = DPMSolverMultistepScheduler.from_config(self.scheduler.config)


class Unpickled(Rearranging):
    def rearrange(self) -> None:
        self.scheduler = pickle.loads(pickle.dumps(self.scheduler))


class Beside(Rearranging):
    """Denoises picture and sound together, each with a scheduler: a deep copy of the one that is set up."""

    def denoise(self, sample: Any, steps: int, generator: Any) -> Any:
        scheduler = self.scheduler
        scheduler.set_timesteps(steps)
        sample = sample * scheduler.init_noise_sigma
        beside, sound = copy.deepcopy(scheduler), sample.flip(-1)
        for timestep in self.progress(scheduler.timesteps):
            sample = self.step(scheduler, timestep, sample, generator)
            sound = self.step(beside, timestep, sound, generator)
        return (sample + sound) / 2


class Midway(Rearranging):
    """Takes a deep copy of its scheduler in the middle, and goes on with both from there."""

    def denoise(self, sample: Any, steps: int, generator: Any) -> Any:
        scheduler, other, second = self.scheduler, None, None
        scheduler.set_timesteps(steps)
        sample = sample * scheduler.init_noise_sigma
        for index, timestep in enumerate(self.progress(scheduler.timesteps)):
            if index == len(scheduler.timesteps) // 2:
                other, second = copy.deepcopy(scheduler), sample + 0.25
            sample = self.step(scheduler, timestep, sample, generator)
            if other is not None:
                second = self.step(other, timestep, second, generator)
        return (sample + second) / 2


class InAList(Rearranging):
    """Keeps its parts in a list and a dict, and chooses among them."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__(unet, scheduler)
        self.schedulers = {"other": type(scheduler).from_config(scheduler.config)}
        self.unets = [globals()["unet"](6)]

    def rearrange(self) -> None:
        self.scheduler = self.schedulers["other"]
        self.unet = self.unets[0]


class DeepCopiedModel(Rearranging):
    """Changes the weights of a deep copy of its denoiser."""

    def rearrange(self) -> None:
        self.unet = copy.deepcopy(self.unet)
        self.unet.conv_out.weight.mul_(0.5)


class CopiedModel(Rearranging):
    def rearrange(self) -> None:
        self.unet = copy.copy(self.unet)
        self.unet.config_of_mine = "a copy's attributes are its own"


class RecreatedModel(Rearranging):
    def rearrange(self) -> None:
        weights = self.unet.state_dict()
        self.unet = type(self.unet).from_config(self.unet.config).eval()
        self.unet.load_state_dict(weights)


class ReplacedModel(Rearranging):
    """Puts a denoiser that it has just made in place of its own, and keeps it in a variable as well."""

    def rearrange(self) -> None:
        made = unet(7)
        self.unet = made
        made.conv_out.weight.mul_(0.5)


class UnpickledModel(Rearranging):
    def rearrange(self) -> None:
        self.unet = pickle.loads(pickle.dumps(self.unet))


class OtherPipeline(Rearranging):
    """Runs a pipeline that it makes of its own parts."""

    def denoise(self, sample: Any, steps: int, generator: Any) -> Any:
        other = Rearranging(**self.components)
        other.set_progress_bar_config(disable=True)
        return other.loop(other.scheduler, sample, steps, generator)


class CopyOfItself(Rearranging):
    def denoise(self, sample: Any, steps: int, generator: Any) -> Any:
        twin = copy.copy(self)
        twin.scheduler = copy.deepcopy(self.scheduler)
        twin.unet = unet(8)
        return twin.loop(twin.scheduler, sample, steps, generator)


class DeepCopyOfItself(Rearranging):
    def denoise(self, sample: Any, steps: int, generator: Any) -> Any:
        twin = copy.deepcopy(self)
        return twin.loop(twin.scheduler, sample, steps, generator)


class OwnMethod(Rearranging):
    """Has a method of its own put on the object, as `types.MethodType` does."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__(unet, scheduler)
        self.chosen_loop = self.loop

    def denoise(self, sample: Any, steps: int, generator: Any) -> Any:
        return self.chosen_loop(self.scheduler, sample, steps, generator)


def silent(kind: type[Rearranging]) -> type[Rearranging]:
    """Return the pipeline without a progress bar."""
    return type(f"Silent{kind.__name__}", (kind,), {"shows_progress": False, "__module__": __name__})


@dataclass(frozen=True)
class _Plan:
    kind: type[Rearranging]
    schedulers: tuple[str, ...]


_PLANS = {
    "deepcopy": _Plan(DeepCopied, ("euler", "dpm", "ddpm", "heun")),
    "copy": _Plan(Copied, ("euler", "unipc", "lcm")),
    "from_config": _Plan(Recreated, ("euler_ancestral", "unipc", "heun")),
    "replaced": _Plan(Replaced, ("euler", "ddpm")),
    "unpickled": _Plan(Unpickled, ("euler",)),
    "beside": _Plan(Beside, ("euler", "euler_ancestral", "dpm", "lcm")),
    "midway": _Plan(Midway, ("dpm", "unipc", "heun", "ddpm")),
    "in_a_list": _Plan(InAList, ("euler", "dpm")),
    "deepcopy_model": _Plan(DeepCopiedModel, ("euler",)),
    "copy_model": _Plan(CopiedModel, ("euler",)),
    "from_config_model": _Plan(RecreatedModel, ("ddpm",)),
    "replaced_model": _Plan(ReplacedModel, ("euler",)),
    "unpickled_model": _Plan(UnpickledModel, ("euler",)),
    "other_pipeline": _Plan(OtherPipeline, ("euler", "heun")),
    "copy_of_itself": _Plan(CopyOfItself, ("euler",)),
    "deepcopy_of_itself": _Plan(DeepCopyOfItself, ("dpm",)),
    "own_method": _Plan(OwnMethod, ("euler",)),
}


class Every:
    """All of these in one, so that requests for different ones run together. No pipeline of diffusers itself."""

    def __init__(self) -> None:
        self.pipelines = {name: build(**arguments) for name, arguments in ARGUMENTS.items()}

    def __call__(
        self, which: str = "", num_inference_steps: int = 4, generator: Any = None, output_type: str = "np"
    ) -> Any:
        return self.pipelines[which](num_inference_steps, generator, output_type)


def every() -> Any:
    return Every()


def build(name: str, scheduler: str, shows_progress: bool = True) -> Any:
    """Build one of them. `model="small_pipelines.rearranging:build"` with `model_options` does it in a worker."""
    kind = _PLANS[name].kind
    return (kind if shows_progress else silent(kind))(unet(), SCHEDULERS[scheduler]())


def timesteps(scheduler: str, steps: int = 4) -> int:
    made = SCHEDULERS[scheduler]()
    made.set_timesteps(steps)
    return len(made.timesteps)


# By name, how to build each: the arguments of `build`.
ARGUMENTS: dict[str, dict[str, Any]] = {
    f"rearranging_{name}_{scheduler}": {"name": name, "scheduler": scheduler}
    for name, plan in _PLANS.items()
    for scheduler in plan.schedulers
}
# Without a progress bar, steps are counted by whatever scheduler makes them.
ARGUMENTS |= {
    f"rearranging_{name}_{_PLANS[name].schedulers[0]}_silent": {
        "name": name,
        "scheduler": _PLANS[name].schedulers[0],
        "shows_progress": False,
    }
    for name in ("deepcopy", "copy", "from_config", "replaced", "beside", "in_a_list", "deepcopy_of_itself")
}


CASES: dict[str, Case] = {
    name: Case(
        functools.partial(build, **arguments),
        {"num_inference_steps": 4},
        family="rearranging",
        steps=timesteps(arguments["scheduler"]),
    )
    for name, arguments in ARGUMENTS.items()
}
