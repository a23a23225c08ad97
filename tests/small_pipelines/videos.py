"""Pipelines that make videos."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LattePipeline,
    LatteTransformer3DModel,
    MotionAdapter,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)

from small_pipelines.case import PROMPT, Case, picture
from small_pipelines.controlnet import fill_zeros
from small_pipelines.images import stable_diffusion_parts
from small_pipelines.images import vae as image_vae
from small_pipelines.text import WIDTH, t5_encoder, t5_tokenizer, umt5_encoder
from small_pipelines.vision import clip_image_encoder, clip_image_processor


def wan(kind: Any = WanPipeline, **more: Any) -> Any:
    torch.manual_seed(9)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return kind(
        tokenizer=t5_tokenizer(),
        text_encoder=umt5_encoder(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=wan_transformer(),
        **more,
    )


def wan_transformer() -> Any:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()


def wan_two_transformers() -> Any:
    """Wan 2.2: one transformer for the noisy steps and one for the others."""
    torch.manual_seed(50)
    return wan(transformer_2=wan_transformer(), boundary_ratio=0.7)


def animate_diff() -> Any:
    parts = stable_diffusion_parts()
    adapter = MotionAdapter(
        block_out_channels=(16, 32), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2
    )
    return AnimateDiffPipeline(
        vae=parts["vae"],
        text_encoder=parts["text_encoder"],
        tokenizer=parts["tokenizer"],
        unet=parts["unet"],
        motion_adapter=adapter,
        scheduler=parts["scheduler"],
    )


def text_to_video() -> Any:
    torch.manual_seed(51)
    unet = UNet3DConditionModel(
        block_out_channels=(8, 8),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    parts = stable_diffusion_parts()
    return TextToVideoSDPipeline(
        vae=parts["vae"],
        text_encoder=parts["text_encoder"],
        tokenizer=parts["tokenizer"],
        unet=fill_zeros(unet, 51),
        scheduler=parts["scheduler"],
    )


def stable_video_diffusion() -> Any:
    torch.manual_seed(52)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=WIDTH,
        num_attention_heads=8,
        projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D"] * 2,
        latent_channels=4,
    )
    return StableVideoDiffusionPipeline(
        unet=unet.eval(),
        image_encoder=clip_image_encoder(),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            interpolation_type="linear",
            prediction_type="v_prediction",
            sigma_max=700.0,
            sigma_min=0.002,
            steps_offset=1,
            timestep_type="continuous",
            timestep_spacing="leading",
            use_karras_sigmas=True,
        ),
        vae=vae.eval(),
        feature_extractor=clip_image_processor(),
    )


def latte() -> Any:
    torch.manual_seed(53)
    transformer = LatteTransformer3DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    return LattePipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=image_vae(),
        transformer=transformer.eval(),
        scheduler=DDIMScheduler(),
    )


SMALL: dict[str, Any] = {**PROMPT, "height": 16, "width": 16}

CASES: dict[str, Case] = {
    "wan_two_transformers": Case(
        wan_two_transformers,
        {**SMALL, "num_inference_steps": 3},
        {"num_frames": 5, "max_sequence_length": 16},
        output="frames",
        family="wan",
    ),
    "animate_diff": Case(animate_diff, SMALL, {"num_frames": 3}, output="frames", family="animate-diff"),
    "text_to_video": Case(text_to_video, SMALL, {"num_frames": 3}, output="frames", family="text-to-video"),
    "stable_video_diffusion": Case(
        stable_video_diffusion,
        {"height": 16, "width": 16, "num_inference_steps": 3},
        {"image": picture(16), "num_frames": 2},
        output="frames",
        family="stable-video-diffusion",
    ),
    "latte": Case(
        latte,
        SMALL,
        {"video_length": 1, "clean_caption": False, "mask_feature": False},
        output="frames",
        family="latte",
    ),
}
