"""Pipelines with a ControlNet, several ControlNets or a T2I-adapter."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    FluxControlNetModel,
    FluxControlNetPipeline,
    HunyuanDiT2DControlNetModel,
    HunyuanDiTControlNetPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    T2IAdapter,
)

from small_pipelines.case import SQUARE, Case, mask, picture
from small_pipelines.diffusion_transformers import hunyuan_dit_parts
from small_pipelines.images import (
    XL_UNET,
    flux,
    stable_diffusion_3,
    stable_diffusion_parts,
    stable_diffusion_xl_parts,
)
from small_pipelines.text import WIDTH

# An adapter's features are added before each downsampling only where there is attention.
ATTENTION_FIRST: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SHORT: dict[str, Any] = {"max_sequence_length": 16}


def fill_zeros(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give the layers that a new ControlNet starts with at zero weights, or it would do nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2, generator=generator)
    return module.eval()


def control(seed: int = 40, **options: Any) -> Any:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "conditioning_embedding_out_channels": (8, 8),
        **options,
    }
    return fill_zeros(ControlNetModel(**settings), seed)


def stable_diffusion_controlnet() -> Any:
    return StableDiffusionControlNetPipeline(**stable_diffusion_parts(), controlnet=control())


def stable_diffusion_multi_controlnet() -> Any:
    return StableDiffusionControlNetPipeline(**stable_diffusion_parts(), controlnet=[control(), control(41)])


def stable_diffusion_controlnet_img2img() -> Any:
    return StableDiffusionControlNetImg2ImgPipeline(**stable_diffusion_parts(), controlnet=control())


def stable_diffusion_controlnet_inpaint() -> Any:
    return StableDiffusionControlNetInpaintPipeline(**stable_diffusion_parts(), controlnet=control())


def stable_diffusion_xl_controlnet() -> Any:
    return StableDiffusionXLControlNetPipeline(**stable_diffusion_xl_parts(), controlnet=control(**XL_UNET))


def stable_diffusion_adapter() -> Any:
    return StableDiffusionAdapterPipeline(**stable_diffusion_parts(**ATTENTION_FIRST), adapter=adapter())


def stable_diffusion_xl_adapter() -> Any:
    return StableDiffusionXLAdapterPipeline(**stable_diffusion_xl_parts(**ATTENTION_FIRST), adapter=adapter())


def adapter() -> Any:
    torch.manual_seed(42)
    return T2IAdapter(
        in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
    ).eval()


def stable_diffusion_3_controlnet() -> Any:
    torch.manual_seed(43)
    net = SD3ControlNetModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
        pos_embed_max_size=16,
    )
    return stable_diffusion_3(StableDiffusion3ControlNetPipeline, controlnet=fill_zeros(net, 43))


def flux_controlnet() -> Any:
    torch.manual_seed(44)
    net = FluxControlNetModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    )
    return flux(FluxControlNetPipeline, controlnet=fill_zeros(net, 44))


def hunyuan_dit_controlnet() -> Any:
    parts = hunyuan_dit_parts()
    config = parts["transformer"].config
    torch.manual_seed(45)
    net = HunyuanDiT2DControlNetModel(
        sample_size=config.sample_size,
        transformer_num_layers=config.num_layers,
        patch_size=config.patch_size,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        in_channels=config.in_channels,
        cross_attention_dim=config.cross_attention_dim,
        cross_attention_dim_t5=config.cross_attention_dim_t5,
        pooled_projection_dim=config.pooled_projection_dim,
        hidden_size=config.hidden_size,
        text_len=config.text_len,
        text_len_t5=config.text_len_t5,
        activation_fn=config.activation_fn,
    )
    return HunyuanDiTControlNetPipeline(**parts, controlnet=fill_zeros(net, 45))


CASES: dict[str, Case] = {
    "stable_diffusion_controlnet": Case(
        stable_diffusion_controlnet, SQUARE, {"image": picture()}, family="stable-diffusion"
    ),
    "stable_diffusion_multi_controlnet": Case(
        stable_diffusion_multi_controlnet,
        SQUARE,
        {"image": [picture(), picture().rotate(90)], "controlnet_conditioning_scale": [1.0, 0.5]},
        family="stable-diffusion",
    ),
    "stable_diffusion_controlnet_img2img": Case(
        stable_diffusion_controlnet_img2img,
        SQUARE,
        {"image": picture(), "control_image": picture().rotate(90), "strength": 1.0},
        family="stable-diffusion",
    ),
    "stable_diffusion_controlnet_inpaint": Case(
        stable_diffusion_controlnet_inpaint,
        SQUARE,
        {"image": picture(), "mask_image": mask(), "control_image": picture().rotate(90), "strength": 1.0},
        family="stable-diffusion",
    ),
    "stable_diffusion_xl_controlnet": Case(
        stable_diffusion_xl_controlnet, SQUARE, {"image": picture()}, family="stable-diffusion-xl"
    ),
    "stable_diffusion_adapter": Case(stable_diffusion_adapter, SQUARE, {"image": picture()}, family="stable-diffusion"),
    "stable_diffusion_xl_adapter": Case(
        stable_diffusion_xl_adapter, SQUARE, {"image": picture()}, family="stable-diffusion-xl"
    ),
    "stable_diffusion_3_controlnet": Case(
        stable_diffusion_3_controlnet, SQUARE, {"control_image": picture(), **SHORT}, family="stable-diffusion-3"
    ),
    "flux_controlnet": Case(flux_controlnet, SQUARE, {"control_image": picture(), **SHORT}, family="flux"),
    "hunyuan_dit_controlnet": Case(
        hunyuan_dit_controlnet,
        SQUARE,
        {"control_image": picture(), "use_resolution_binning": False},
        family="hunyuan-dit",
    ),
}
