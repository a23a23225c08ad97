"""Pipelines that make sound."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AudioLDMPipeline,
    AutoencoderOobleck,
    DanceDiffusionPipeline,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    IPNDMScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    UNet1DModel,
)
from transformers import ClapTextConfig, ClapTextModelWithProjection, SpeechT5HifiGan, SpeechT5HifiGanConfig

from small_pipelines.case import PROMPT, Case
from small_pipelines.images import unet, vae
from small_pipelines.text import WIDTH, letter_tokenizer, t5_encoder, t5_tokenizer


def dance_diffusion() -> Any:
    torch.manual_seed(10)
    unet = UNet1DModel(
        block_out_channels=(32, 32, 64),
        extra_in_channels=64,
        sample_size=256,
        sample_rate=16_000,
        in_channels=2,
        out_channels=2,
        flip_sin_to_cos=True,
        use_timestep_embedding=False,
        time_embedding_type="fourier",
        mid_block_type="UNetMidBlock1D",
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    )
    return DanceDiffusionPipeline(unet.eval(), IPNDMScheduler())


def stable_audio() -> Any:
    torch.manual_seed(11)
    transformer = StableAudioDiTModel(
        sample_size=4,
        in_channels=3,
        num_layers=2,
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
    return StableAudioPipeline(
        vae=vae.eval(),
        text_encoder=t5_encoder(),
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=WIDTH, conditioning_dim=4, min_value=0, max_value=32
        ),
        tokenizer=t5_tokenizer(),
        transformer=transformer.eval(),
        scheduler=EDMDPMSolverMultistepScheduler(),
    )


def audio_ldm() -> Any:
    torch.manual_seed(90)
    text_encoder = ClapTextModelWithProjection(
        ClapTextConfig(
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_attention_heads=2,
            num_hidden_layers=1,
            vocab_size=128,
            projection_dim=WIDTH,
        )
    )
    torch.manual_seed(91)
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8,
            sampling_rate=16000,
            upsample_initial_channel=16,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3, 7],
            resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
            normalize_before=False,
            initializer_range=0.2,
        )
    )
    return AudioLDMPipeline(
        vae=vae(in_channels=1, out_channels=1),
        text_encoder=text_encoder.eval(),
        tokenizer=letter_tokenizer(),
        unet=unet(
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=WIDTH,
            class_embeddings_concat=True,
            cross_attention_dim=(16, 32),
        ),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
        vocoder=vocoder.eval(),
    )


CASES: dict[str, Case] = {
    "audio_ldm": Case(audio_ldm, PROMPT, {"audio_length_in_s": 0.008}, output="audios", family="audio-ldm"),
}
