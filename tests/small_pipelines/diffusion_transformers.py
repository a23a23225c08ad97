"""Pipelines that make pictures from text with a transformer."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    GemmaConfig,
    GemmaModel,
)

from small_pipelines.case import SQUARE, Case
from small_pipelines.images import vae
from small_pipelines.text import WIDTH, language_model, letter_tokenizer, t5_encoder, t5_tokenizer


def flow_vae(channels: int = 4) -> Any:
    return vae(channels, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)


def pixart_transformer() -> Any:
    torch.manual_seed(20)
    return PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=WIDTH,
        cross_attention_dim=32,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    ).eval()


def pixart(kind: Any, **more: Any) -> Any:
    return kind(
        transformer=pixart_transformer(),
        vae=vae(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        scheduler=DPMSolverMultistepScheduler(),
        **more,
    )


def pixart_alpha() -> Any:
    return pixart(PixArtAlphaPipeline)


def pixart_sigma() -> Any:
    return pixart(PixArtSigmaPipeline)


def sana(kind: Any = SanaPipeline, **more: Any) -> Any:
    torch.manual_seed(21)
    autoencoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1],
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=16,
    )
    return kind(
        transformer=transformer.eval(),
        vae=autoencoder.eval(),
        text_encoder=language_model(Gemma2Model, Gemma2Config),
        tokenizer=letter_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **more,
    )


def hunyuan_dit_parts() -> dict[str, Any]:
    torch.manual_seed(22)
    transformer = HunyuanDiT2DModel(
        sample_size=8,
        num_layers=4,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=16,
        hidden_size=32,
        text_len=77,
        text_len_t5=256,
        activation_fn="gelu-approximate",
    )
    bert = BertModel(
        BertConfig(
            vocab_size=128, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=WIDTH
        )
    )
    return {
        "transformer": transformer.eval(),
        "vae": vae(levels=4),
        "scheduler": DDPMScheduler(),
        "text_encoder": bert.eval(),
        "tokenizer": letter_tokenizer(),
        "text_encoder_2": t5_encoder(),
        "tokenizer_2": t5_tokenizer(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def hunyuan_dit() -> Any:
    return HunyuanDiTPipeline(**hunyuan_dit_parts())


def lumina() -> Any:
    torch.manual_seed(23)
    transformer = LuminaNextDiT2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        scaling_factor=1.0,
        cross_attention_dim=WIDTH,
    )
    torch.nn.init.normal_(transformer.pad_token)  # diffusers leaves it as the memory was
    return LuminaPipeline(
        transformer=transformer.eval(),
        vae=vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=language_model(GemmaModel, GemmaConfig),
        tokenizer=letter_tokenizer(),
    )


def lumina2() -> Any:
    torch.manual_seed(24)
    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        cap_feat_dim=WIDTH,
    )
    return Lumina2Pipeline(
        transformer=transformer.eval(),
        vae=flow_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=language_model(Gemma2Model, Gemma2Config),
        tokenizer=letter_tokenizer(),
    )


CASES: dict[str, Case] = {
    "pixart_alpha": Case(
        pixart_alpha, SQUARE, {"clean_caption": False, "use_resolution_binning": False}, family="pixart"
    ),
    "pixart_sigma": Case(
        pixart_sigma, SQUARE, {"clean_caption": False, "use_resolution_binning": False}, family="pixart"
    ),
    "sana": Case(
        sana,
        SQUARE,
        {"use_resolution_binning": False, "complex_human_instruction": None, "max_sequence_length": 16},
        family="sana",
    ),
    "hunyuan_dit": Case(hunyuan_dit, SQUARE, {"use_resolution_binning": False}, family="hunyuan-dit"),
    "lumina": Case(lumina, SQUARE, {"clean_caption": False, "max_sequence_length": 16}, family="lumina"),
    "lumina2": Case(lumina2, SQUARE, {"max_sequence_length": 16}, family="lumina2"),
}
