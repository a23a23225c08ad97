"""Pipelines without text, pipelines that denoise pixels or tokens, and variants of how Stable Diffusion is sampled."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AmusedPipeline,
    AmusedScheduler,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    HeunDiscreteScheduler,
    IFPipeline,
    IFSuperResolutionPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMPipeline,
    PNDMScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    StableDiffusionPanoramaPipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
    UNet2DModel,
    UVit2DModel,
    VQModel,
)

from small_pipelines.case import PROMPT, SQUARE, Case, picture
from small_pipelines.images import ddpm, stable_diffusion_parts, unet
from small_pipelines.text import WIDTH, clip_text_encoder, clip_tokenizer, t5_encoder, t5_tokenizer


def ddim() -> Any:
    return DDIMPipeline(ddpm().unet, DDIMScheduler())


def pndm() -> Any:
    return PNDMPipeline(ddpm().unet, PNDMScheduler())


def score_sde_ve() -> Any:
    return ScoreSdeVePipeline(ddpm().unet, ScoreSdeVeScheduler())


def consistency_model() -> Any:
    torch.manual_seed(80)
    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        num_class_embeds=4,
    )
    return ConsistencyModelPipeline(model.eval(), CMStochasticIterativeScheduler())


def if_unet(**options: Any) -> Any:
    return unet(
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        encoder_hid_dim=WIDTH,
        act_fn="gelu",
        **options,
    )


def if_parts() -> dict[str, Any]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_encoder(),
        "scheduler": DDPMScheduler(thresholding=True, variance_type="learned_range", prediction_type="epsilon"),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }


def deepfloyd_if() -> Any:
    return IFPipeline(**if_parts(), unet=if_unet(in_channels=3))


def deepfloyd_if_super_resolution() -> Any:
    enlarger = if_unet(in_channels=6, class_embed_type="timestep")
    return IFSuperResolutionPipeline(**if_parts(), unet=enlarger, image_noising_scheduler=DDPMScheduler())


def latent_consistency() -> Any:
    parts = stable_diffusion_parts(time_cond_proj_dim=8)
    return LatentConsistencyModelPipeline(**{**parts, "scheduler": LCMScheduler(original_inference_steps=50)})


def stable_diffusion_panorama() -> Any:
    return StableDiffusionPanoramaPipeline(**stable_diffusion_parts())


def stable_diffusion_sag() -> Any:
    return StableDiffusionSAGPipeline(**stable_diffusion_parts())


def stable_diffusion_second_order() -> Any:
    return StableDiffusionPipeline(
        **{**stable_diffusion_parts(), "scheduler": HeunDiscreteScheduler(beta_schedule="scaled_linear")}
    )


def amused() -> Any:
    torch.manual_seed(81)
    transformer = UVit2DModel(
        hidden_size=16,
        use_bias=False,
        hidden_dropout=0.0,
        cond_embed_dim=WIDTH,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=WIDTH,
        vocab_size=32,
        codebook_size=32,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=1,
        downsample=True,
        upsample=True,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        attention_dropout=0.0,
        intermediate_size=16,
        layer_norm_eps=1e-06,
        ln_elementwise_affine=True,
    )
    codebook = VQModel(
        act_fn="silu",
        block_out_channels=[8],
        down_block_types=["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"],
        latent_channels=8,
        layers_per_block=1,
        norm_num_groups=4,
        num_vq_embeddings=32,
        sample_size=8,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    return AmusedPipeline(
        vqvae=codebook.eval(),
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text_encoder(projection=True),
        transformer=transformer.eval(),
        scheduler=AmusedScheduler(mask_token_id=31),
    )


STEPS: dict[str, Any] = {"num_inference_steps": 3}

CASES: dict[str, Case] = {
    "ddim": Case(ddim, STEPS, family="ddpm"),
    "pndm": Case(pndm, {"num_inference_steps": 4}, family="ddpm", steps=13),
    "score_sde_ve": Case(score_sde_ve, STEPS, family="ddpm"),
    "consistency_model": Case(consistency_model, STEPS, {"class_labels": 1}, family="consistency-model"),
    "deepfloyd_if": Case(deepfloyd_if, PROMPT, {"clean_caption": False}, family="deepfloyd-if"),
    "deepfloyd_if_super_resolution": Case(
        deepfloyd_if_super_resolution,
        {**PROMPT, "height": 16, "width": 16},
        {"image": picture(8), "clean_caption": False},
        family="deepfloyd-if",
    ),
    "latent_consistency": Case(latent_consistency, SQUARE, family="latent-consistency"),
    "stable_diffusion_panorama": Case(
        stable_diffusion_panorama,
        {**SQUARE, "height": 64, "width": 80},
        {"view_batch_size": 2},
        family="stable-diffusion",
    ),
    "stable_diffusion_sag": Case(stable_diffusion_sag, SQUARE, family="stable-diffusion"),
    "stable_diffusion_second_order": Case(stable_diffusion_second_order, SQUARE, family="stable-diffusion"),
    "amused": Case(amused, {**SQUARE, "height": 8, "width": 8}, family="amused"),
}
