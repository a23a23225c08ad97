"""Stock pipelines that copy their scheduler while they run."""

from __future__ import annotations

import types
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    StableDiffusionPanoramaPipeline,
    TextToVideoZeroPipeline,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.skyreels_v2 import pipeline_skyreels_v2_diffusion_forcing as skyreels

from small_pipelines.case import PROMPT, SQUARE, Case
from small_pipelines.images import stable_diffusion_parts
from small_pipelines.text import WIDTH, t5_tokenizer, umt5_encoder


def skyreels_v2_diffusion_forcing() -> Any:
    """One deep copy of the scheduler per frame of the latents."""
    # It mends broken characters. A prompt of plain letters stays as it is, but the pipeline does not go without it.
    if not hasattr(skyreels, "ftfy"):
        skyreels.ftfy = types.SimpleNamespace(fix_text=str)
    torch.manual_seed(80)
    transformer = SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=256,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return SkyReelsV2DiffusionForcingPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=umt5_encoder(),
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True, prediction_type="flow_prediction"),
    )


def text_to_video_zero() -> Any:
    """Deep-copies its scheduler after the first stage, and puts the copy in its place for the last."""
    parts = stable_diffusion_parts()
    del parts["requires_safety_checker"]
    return TextToVideoZeroPipeline(**parts, requires_safety_checker=False)


def panorama() -> Any:
    """Copies all attributes of its scheduler, one set for each view, and puts them back."""
    return StableDiffusionPanoramaPipeline(**stable_diffusion_parts())


CASES: dict[str, Case] = {
    "skyreels_v2_diffusion_forcing": Case(
        skyreels_v2_diffusion_forcing,
        {**PROMPT, "height": 16, "width": 16, "output_type": "np"},
        {"num_frames": 5, "base_num_frames": 5, "max_sequence_length": 16},
        output="frames",
        family="skyreels-v2",
    ),
    "text_to_video_zero": Case(
        text_to_video_zero,
        {**SQUARE, "num_inference_steps": 4, "output_type": "np"},
        {"video_length": 2, "t0": 1, "t1": 2},
        family="text-to-video-zero",
        steps=5,
        is_total_known=False,
    ),
    "panorama": Case(panorama, {**SQUARE, "height": 32, "width": 48}, {}, family="panorama"),
}
