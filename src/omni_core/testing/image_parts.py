"""Autoencoders and denoisers of pictures, with few and random weights."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKL,
    DiTTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)

from omni_core.testing.text_parts import WIDTH


def vae(channels: int = 4, levels: int = 2, **options: Any) -> Any:
    """Return an autoencoder whose pictures are `2 ** (levels - 1)` times as wide as its latents."""
    return AutoencoderKL(
        block_out_channels=[8, *[16] * (levels - 1)],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=channels,
        norm_num_groups=4,
        **options,
    )


def text_to_image_unet(**options: Any) -> Any:
    """Return the denoiser of a Stable Diffusion."""
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
    return UNet2DConditionModel(**settings)


def unconditional_unet() -> Any:
    """Return a denoiser that takes nothing but noise."""
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )


def class_transformer(num_layers: int = 1) -> Any:
    """Return the denoiser of a DiT, which takes the number of a class."""
    return DiTTransformer2DModel(
        sample_size=8,
        num_layers=num_layers,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )


def joint_transformer(channels: int = 4, num_layers: int = 1) -> Any:
    """Return the denoiser of a Stable Diffusion 3."""
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=channels,
        num_layers=num_layers,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=channels,
        pos_embed_max_size=16,
    )
