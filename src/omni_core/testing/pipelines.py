"""Tiny stock pipelines with random weights, the same in every process: `model="omni_core.testing.pipelines:picture"`.

A denoising step takes about a millisecond. Besides, factories of pipelines that go wrong.
"""

from __future__ import annotations

import functools
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    AutoencoderOobleck,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    WanPipeline,
    WanTransformer3DModel,
)

from omni_core.testing.image_parts import (
    class_transformer,
    joint_transformer,
    text_to_image_unet,
    unconditional_unet,
    vae,
)
from omni_core.testing.injection import MOST_WAIT_S, Fault, end_process, with_fault
from omni_core.testing.text_parts import (
    WIDTH,
    clip_text_encoder,
    clip_tokenizer,
    t5_encoder,
    t5_tokenizer,
    umt5_encoder,
)


def _repeatable(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Give every pipeline that `factory` builds the same weights, in every process."""

    @functools.wraps(factory)
    def build(*args: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            pipeline = factory(*args)
        for name, module in sorted(pipeline.components.items()):
            if isinstance(module, torch.nn.Module):
                _fill(module.eval(), name)
        return pipeline

    return build


def _fill(module: torch.nn.Module, name: str) -> None:
    """Fill a module with random weights, from a generator of its own.

    Torch's global generator would not do: other threads, such as another engine's, draw from it at the same time.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for parameter in module.parameters():
            is_constant = parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())
            if not is_constant:  # what begins as zeros or ones is the same everywhere
                scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


@_repeatable
def picture(kind: Any = StableDiffusion3Pipeline) -> Any:
    """Return a text-to-image pipeline: Stable Diffusion 3."""
    return kind(
        transformer=joint_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_encoder(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
    )


class FaultyPipeline(StableDiffusion3Pipeline):  # type: ignore[misc]
    """Stable Diffusion 3 with a keyword `fault` by which one request can be made to go wrong: see `injection`."""

    def __call__(
        self,
        *,
        prompt: Any = None,
        negative_prompt: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 4,
        guidance_scale: float = 4.0,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        latents: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        max_sequence_length: int = 16,
        joint_attention_kwargs: dict[str, Any] | None = None,
        fault: dict[str, Any] | None = None,
        note: Any = None,
    ) -> Any:
        """Run the stock pipeline; `note` is ignored, so that it can hold anything."""
        output = super().__call__(
            prompt=prompt,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            latents=latents,
            output_type=output_type,
            return_dict=return_dict,
            max_sequence_length=max_sequence_length,
            joint_attention_kwargs=joint_attention_kwargs,
            callback_on_step_end=None if fault is None else Fault(fault),
        )
        return output if fault is None else with_fault(output, fault)


def faulty() -> Any:
    """Return the pipeline of `picture`, with the keyword `fault`."""
    return picture(FaultyPipeline)


@_repeatable
def image_to_image() -> Any:
    """Return an image-to-image pipeline: Stable Diffusion."""
    return StableDiffusionImg2ImgPipeline(
        vae=vae(),
        text_encoder=clip_text_encoder(),
        tokenizer=clip_tokenizer(),
        unet=text_to_image_unet(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@_repeatable
def class_conditional() -> Any:
    """Return a class-conditional pipeline: DiT."""
    return DiTPipeline(class_transformer(), vae(), DDIMScheduler())


@_repeatable
def video() -> Any:
    """Return a text-to-video pipeline: Wan."""
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=umt5_encoder(),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    )


@_repeatable
def audio() -> Any:
    """Return a text-to-audio pipeline: Stable Audio."""
    transformer = StableAudioDiTModel(
        sample_size=4,
        in_channels=3,
        num_layers=1,
        attention_head_dim=4,
        num_key_value_attention_heads=2,
        out_channels=3,
        cross_attention_dim=4,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )
    vae = AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=40,
    )
    projection = StableAudioProjectionModel(text_encoder_dim=WIDTH, conditioning_dim=4, min_value=0, max_value=32)
    return StableAudioPipeline(
        vae=vae,
        text_encoder=t5_encoder(),
        projection_model=projection,
        tokenizer=t5_tokenizer(),
        transformer=transformer,
        scheduler=EDMDPMSolverMultistepScheduler(),
    )


@_repeatable
def unconditional() -> Any:
    """Return a pipeline that takes no prompt: DDPM."""
    return DDPMPipeline(unconditional_unet(), DDPMScheduler())


def raising() -> Any:
    """Fail, as a factory does that does not find its weights."""
    raise FileNotFoundError("no weights today")


def exiting(spared_pid: int) -> None:
    """End the process that loads, unless it is `spared_pid`."""
    end_process("exit", spared_pid)


def killed(spared_pid: int) -> None:
    """Kill the process that loads, unless it is `spared_pid`."""
    end_process("kill", spared_pid)


def exiting_in_one(spared_pid: int, marker: str) -> Any:
    """End the first process that loads, unless it is `spared_pid`, and load in the others."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return picture()
    return end_process("exit", spared_pid)


def hanging() -> Any:
    """Take longer to load than anybody waits."""
    threading.Event().wait(MOST_WAIT_S)
    return picture()
