"""Pipelines of several stages: a prior and a decoder, alone and in one."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    KandinskyV22CombinedPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    StableCascadeCombinedPipeline,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DModel,
    VQModel,
)
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

from small_pipelines.case import PROMPT, SQUARE, Case
from small_pipelines.images import unet
from small_pipelines.text import LENGTH, WIDTH, clip_text_encoder, clip_tokenizer
from small_pipelines.vision import clip_image_encoder, clip_image_processor


def prior_transformer(tokens: int = LENGTH, **options: Any) -> Any:
    torch.manual_seed(70)
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=16,
        embedding_dim=WIDTH,
        num_layers=1,
        num_embeddings=tokens,
        additional_embeddings=4,
        **options,
    )
    # Zeros in a new model would make the prior's output black.
    prior.clip_std = torch.nn.Parameter(torch.ones(prior.clip_std.shape))
    return prior.eval()


def kandinsky_prior_parts() -> dict[str, Any]:
    return {
        "prior": prior_transformer(),
        "image_encoder": clip_image_encoder(),
        "text_encoder": clip_text_encoder(projection=True),
        "tokenizer": clip_tokenizer(),
        "scheduler": UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0),
        "image_processor": clip_image_processor(),
    }


def kandinsky_decoder_parts() -> dict[str, Any]:
    torch.manual_seed(71)
    movq = VQModel(
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=12,
        vq_embed_dim=4,
        norm_type="spatial",
    )
    return {
        "unet": unet(
            out_channels=8,
            addition_embed_type="image",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            encoder_hid_dim=WIDTH,
            encoder_hid_dim_type="image_proj",
            resnet_time_scale_shift="scale_shift",
            class_embed_type=None,
        ),
        "scheduler": DDPMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample_range=2.0),
        "movq": movq.eval(),
    }


def kandinsky_prior() -> Any:
    return KandinskyV22PriorPipeline(**kandinsky_prior_parts())


def kandinsky() -> Any:
    return KandinskyV22Pipeline(**kandinsky_decoder_parts())


def kandinsky_combined() -> Any:
    prior = {f"prior_{name}": part for name, part in kandinsky_prior_parts().items()}
    return KandinskyV22CombinedPipeline(**kandinsky_decoder_parts(), **prior)


def paella() -> Any:
    torch.manual_seed(72)
    return PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2).eval()


def cascade_prior() -> Any:
    torch.manual_seed(73)
    return StableCascadeUNet(
        conditioning_dim=128,
        block_out_channels=(128, 128),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_image_in_channels=WIDTH,
        switch_level=(False,),
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=WIDTH,
    ).eval()


def cascade_decoder() -> Any:
    torch.manual_seed(74)
    return StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=128,
        block_out_channels=(16, 32, 64, 128),
        num_attention_heads=(-1, -1, 1, 2),
        down_num_layers_per_block=(1, 1, 1, 1),
        up_num_layers_per_block=(1, 1, 1, 1),
        down_blocks_repeat_mappers=(1, 1, 1, 1),
        up_blocks_repeat_mappers=(3, 3, 2, 2),
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
        switch_level=None,
        clip_text_pooled_in_channels=WIDTH,
        dropout=(0.1, 0.1, 0.1, 0.1),
    ).eval()


def stable_cascade_prior() -> Any:
    return StableCascadePriorPipeline(
        prior=cascade_prior(),
        text_encoder=clip_text_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        scheduler=DDPMWuerstchenScheduler(),
    )


def stable_cascade_decoder() -> Any:
    return StableCascadeDecoderPipeline(
        decoder=cascade_decoder(),
        text_encoder=clip_text_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=paella(),
        latent_dim_scale=4.0,
    )


def stable_cascade_combined() -> Any:
    return StableCascadeCombinedPipeline(
        decoder=cascade_decoder(),
        text_encoder=clip_text_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=paella(),
        prior_prior=cascade_prior(),
        prior_text_encoder=clip_text_encoder(projection=True),
        prior_tokenizer=clip_tokenizer(),
        prior_scheduler=DDPMWuerstchenScheduler(),
    )


def unclip() -> Any:
    torch.manual_seed(77)
    projection = UnCLIPTextProjModel(clip_embeddings_dim=WIDTH, time_embed_dim=64, cross_attention_dim=WIDTH)
    decoder = unet(
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
        sample_size=16,
    )
    torch.manual_seed(78)
    enlargers = [
        UNet2DModel(
            sample_size=32,
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
            up_block_types=("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
            block_out_channels=(16, 32),
            norm_num_groups=4,
            in_channels=6,
            out_channels=3,
        ).eval()
        for _ in range(2)
    ]
    return UnCLIPPipeline(
        prior=prior_transformer(),
        decoder=decoder,
        text_proj=projection.eval(),
        text_encoder=clip_text_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        super_res_first=enlargers[0],
        super_res_last=enlargers[1],
        prior_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon"),
        super_res_scheduler=UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="epsilon"),
    )


def embedding(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


CASES: dict[str, Case] = {
    "kandinsky_prior": Case(
        kandinsky_prior, PROMPT, output="image_embeds", family="kandinsky-2.2", exact_output_type=None
    ),
    "kandinsky": Case(
        kandinsky,
        {"height": 32, "width": 32, "num_inference_steps": 3},
        {"image_embeds": embedding(1, WIDTH), "negative_image_embeds": embedding(2, WIDTH)},
        family="kandinsky-2.2",
    ),
    "kandinsky_combined": Case(
        kandinsky_combined, SQUARE, {"prior_num_inference_steps": 2}, family="kandinsky-2.2", steps=2 + 3
    ),
    "stable_cascade_prior": Case(
        stable_cascade_prior,
        {**SQUARE, "output_type": "np"},
        output="image_embeddings",
        family="stable-cascade",
    ),
    "stable_cascade_decoder": Case(
        stable_cascade_decoder, PROMPT, {"image_embeddings": embedding(3, 4, 4, 4)}, family="stable-cascade"
    ),
    "stable_cascade_combined": Case(
        stable_cascade_combined, SQUARE, {"prior_num_inference_steps": 2}, family="stable-cascade", steps=2 + 3
    ),
    "unclip": Case(
        unclip,
        {"prompt": "a red seven"},
        {"prior_num_inference_steps": 2, "decoder_num_inference_steps": 3, "super_res_num_inference_steps": 2},
        family="unclip",
        steps=2 + 3 + 2,
        steps_argument="decoder_num_inference_steps",
    ),
}
