"""Pipelines that make pictures."""

from __future__ import annotations

import threading
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from omni_core.testing import image_parts
from small_pipelines.text import WIDTH, clip_text_encoder, clip_tokenizer, t5_encoder, t5_tokenizer


def vae(channels: int = 4, levels: int = 2, **options: Any) -> Any:
    """Return an autoencoder whose pictures are `2 ** (levels - 1)` times as wide as its latents."""
    torch.manual_seed(3)
    return image_parts.vae(channels, levels, **options).eval()


def unet(**options: Any) -> Any:
    torch.manual_seed(4)
    return image_parts.text_to_image_unet(**options).eval()


def ddpm() -> Any:
    torch.manual_seed(5)
    return DDPMPipeline(image_parts.unconditional_unet().eval(), DDPMScheduler())


def dit() -> Any:
    torch.manual_seed(6)
    transformer = image_parts.class_transformer(num_layers=2)
    return DiTPipeline(transformer.eval(), vae(), DDIMScheduler())


def stable_diffusion_parts(**unet_options: Any) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": clip_text_encoder(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(**unet_options),
        "scheduler": DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def stable_diffusion() -> Any:
    return StableDiffusionPipeline(**stable_diffusion_parts())


def stable_diffusion_img2img() -> Any:
    return StableDiffusionImg2ImgPipeline(**stable_diffusion_parts())


XL_UNET: dict[str, Any] = {
    "cross_attention_dim": 2 * WIDTH,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
    "use_linear_projection": True,
}


def stable_diffusion_xl_parts(**unet_options: Any) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": clip_text_encoder(),
        "text_encoder_2": clip_text_encoder(projection=True),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "unet": unet(**XL_UNET, **unet_options),
        "scheduler": EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    }


def stable_diffusion_xl() -> Any:
    return StableDiffusionXLPipeline(**stable_diffusion_xl_parts())


def stable_diffusion_3(kind: Any = StableDiffusion3Pipeline, channels: int = 4, **more: Any) -> Any:
    torch.manual_seed(7)
    transformer = image_parts.joint_transformer(channels, num_layers=2)
    return kind(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(channels, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_encoder(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
        **more,
    )


def flux(kind: Any = FluxPipeline, in_channels: int = 16, **more: Any) -> Any:
    torch.manual_seed(8)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=in_channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    )
    return kind(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer.eval(),
        **more,
    )


def heavy() -> Any:
    """160 MiB of weights that do not take long to compute with."""
    pipeline = ddpm()
    pipeline.unet.ballast = torch.nn.Parameter(torch.zeros(40 * 2**20))
    return pipeline


def slow() -> Any:
    """Takes longer to load than a test waits for it."""
    threading.Event().wait(1.0)
    return ddpm()
