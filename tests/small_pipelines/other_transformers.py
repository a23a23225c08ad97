"""Further pipelines that make pictures from text with a transformer."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    GlmConfig,
    GlmModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
)

from small_pipelines.case import SQUARE, Case
from small_pipelines.diffusion_transformers import flow_vae
from small_pipelines.images import vae
from small_pipelines.text import WIDTH, language_model, letter_tokenizer, t5_encoder, t5_tokenizer, umt5_encoder

CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def aura_flow() -> Any:
    torch.manual_seed(25)
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=WIDTH,
        pos_embed_max_size=64,
    )
    return AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=umt5_encoder(),
        vae=vae(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def qwen_image() -> Any:
    torch.manual_seed(26)
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [4, 2, 2], "rope_type": "default", "type": "default"},
            "vocab_size": 128,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
        },
        vocab_size=128,
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder.eval(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=letter_tokenizer(),
        transformer=transformer.eval(),
    )


def chroma_transformer() -> Any:
    torch.manual_seed(27)
    return ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    ).eval()


def chroma(kind: Any = ChromaPipeline) -> Any:
    return kind(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_vae(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=chroma_transformer(),
    )


def cogview3() -> Any:
    torch.manual_seed(28)
    transformer = CogView3PlusTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=8,
        sample_size=8,
    )
    return CogView3PlusPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=vae(),
        transformer=transformer.eval(),
        scheduler=CogVideoXDDIMScheduler(),
    )


def cogview4() -> Any:
    torch.manual_seed(29)
    transformer = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(64, 64),
    )
    return CogView4Pipeline(
        tokenizer=letter_tokenizer(),
        text_encoder=language_model(GlmModel, GlmConfig),
        vae=vae(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def z_image() -> Any:
    torch.manual_seed(30)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    # Pads that a checkpoint sets and the class leaves empty.
    torch.nn.init.normal_(transformer.x_pad_token)
    torch.nn.init.normal_(transformer.cap_pad_token)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_vae(),
        text_encoder=language_model(Qwen3Model, Qwen3Config),
        tokenizer=letter_tokenizer(CHAT),
        transformer=transformer.eval(),
    )


CASES: dict[str, Case] = {
    "aura_flow": Case(aura_flow, SQUARE, {"max_sequence_length": 16}, family="aura-flow"),
    "qwen_image": Case(qwen_image, {**SQUARE, "negative_prompt": "blue"}, family="qwen-image"),
    "chroma": Case(chroma, SQUARE, {"max_sequence_length": 16}, family="chroma"),
    "cogview3": Case(cogview3, SQUARE, {"max_sequence_length": 16}, family="cogview"),
    "cogview4": Case(cogview4, SQUARE, {"max_sequence_length": 16}, family="cogview"),
    "z_image": Case(z_image, SQUARE, {"max_sequence_length": 16}, family="z-image"),
}
