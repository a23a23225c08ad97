"""Pipelines that make pictures."""

from __future__ import annotations

import threading
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)

from small_pipelines.text import WIDTH, clip_text_encoder, clip_tokenizer, t5_encoder, t5_tokenizer


def vae(channels: int = 4, levels: int = 2, **options: Any) -> Any:
    """Return an autoencoder whose pictures are `2 ** (levels - 1)` times as wide as its latents."""
    torch.manual_seed(3)
    return AutoencoderKL(
        block_out_channels=[8, *[16] * (levels - 1)],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=channels,
        norm_num_groups=4,
        **options,
    ).eval()


def unet(**options: Any) -> Any:
    torch.manual_seed(4)
    settings: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        **options,
    }
    return UNet2DConditionModel(**settings).eval()


def ddpm() -> Any:
    torch.manual_seed(5)
    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )
    return DDPMPipeline(model.eval(), DDPMScheduler())


def dit() -> Any:
    torch.manual_seed(6)
    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
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
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=channels,
        pos_embed_max_size=16,
    )
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
