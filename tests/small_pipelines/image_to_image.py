"""Pipelines that start from a picture."""

from __future__ import annotations

from typing import Any

from diffusers import (
    ChromaImg2ImgPipeline,
    DDPMScheduler,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    MarigoldDepthPipeline,
    MarigoldNormalsPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)

from small_pipelines.case import PROMPT, SQUARE, Case, mask, picture
from small_pipelines.images import flux, stable_diffusion_3, stable_diffusion_parts, stable_diffusion_xl_parts
from small_pipelines.other_transformers import chroma

IMAGE: dict[str, Any] = {"image": picture(), "strength": 1.0}
PAINT: dict[str, Any] = {**IMAGE, "mask_image": mask()}
SHORT: dict[str, Any] = {"max_sequence_length": 16}


def stable_diffusion_inpaint() -> Any:
    return StableDiffusionInpaintPipeline(**stable_diffusion_parts(in_channels=9))


def instruct_pix2pix() -> Any:
    return StableDiffusionInstructPix2PixPipeline(**stable_diffusion_parts(in_channels=8))


def stable_diffusion_upscale() -> Any:
    parts = stable_diffusion_parts(in_channels=7, num_class_embeds=1000)
    del parts["requires_safety_checker"]
    return StableDiffusionUpscalePipeline(**parts, low_res_scheduler=DDPMScheduler(), max_noise_level=350)


def stable_diffusion_xl_img2img() -> Any:
    parts = stable_diffusion_xl_parts()
    return StableDiffusionXLImg2ImgPipeline(**parts)


def stable_diffusion_xl_inpaint() -> Any:
    return StableDiffusionXLInpaintPipeline(**stable_diffusion_xl_parts())


def stable_diffusion_3_img2img() -> Any:
    return stable_diffusion_3(StableDiffusion3Img2ImgPipeline)


def stable_diffusion_3_inpaint() -> Any:
    return stable_diffusion_3(StableDiffusion3InpaintPipeline, channels=16)


def flux_img2img() -> Any:
    return flux(FluxImg2ImgPipeline)


def flux_inpaint() -> Any:
    return flux(FluxInpaintPipeline)


def flux_fill() -> Any:
    # Latents, masked picture, and the mask: one channel for each of a patch's pixels, 4 by 4.
    return flux(FluxFillPipeline, in_channels=16 + 16 + 16)


def flux_control() -> Any:
    return flux(FluxControlPipeline, in_channels=32)


def flux_kontext() -> Any:
    return flux(FluxKontextPipeline)


def chroma_img2img() -> Any:
    return chroma(ChromaImg2ImgPipeline)


def _marigold(kind: Any, **more: Any) -> Any:
    parts = stable_diffusion_parts(in_channels=8)
    return kind(
        **{name: parts[name] for name in ("unet", "vae", "scheduler", "text_encoder", "tokenizer")},
        default_denoising_steps=3,
        default_processing_resolution=32,
        **more,
    )


def marigold_depth() -> Any:
    return _marigold(MarigoldDepthPipeline, prediction_type="depth")


def marigold_normals() -> Any:
    return _marigold(MarigoldNormalsPipeline, prediction_type="normals")


CASES: dict[str, Case] = {
    "stable_diffusion_inpaint": Case(stable_diffusion_inpaint, SQUARE, PAINT, family="stable-diffusion"),
    "instruct_pix2pix": Case(instruct_pix2pix, PROMPT, {"image": picture()}, family="stable-diffusion"),
    "stable_diffusion_upscale": Case(
        stable_diffusion_upscale, PROMPT, {"image": picture(16)}, family="stable-diffusion"
    ),
    "stable_diffusion_xl_img2img": Case(
        stable_diffusion_xl_img2img,
        {**PROMPT, "num_inference_steps": 4},
        {"image": picture(), "strength": 0.75},
        family="stable-diffusion-xl",
    ),
    "stable_diffusion_xl_inpaint": Case(
        stable_diffusion_xl_inpaint, SQUARE, {**PAINT, "strength": 0.9999}, family="stable-diffusion-xl", steps=2
    ),
    "stable_diffusion_3_img2img": Case(
        stable_diffusion_3_img2img, SQUARE, {**IMAGE, **SHORT}, family="stable-diffusion-3"
    ),
    "stable_diffusion_3_inpaint": Case(
        stable_diffusion_3_inpaint, SQUARE, {**PAINT, **SHORT}, family="stable-diffusion-3"
    ),
    "flux_img2img": Case(flux_img2img, SQUARE, {**IMAGE, **SHORT}, family="flux"),
    "flux_inpaint": Case(flux_inpaint, SQUARE, {**PAINT, **SHORT}, family="flux"),
    "flux_fill": Case(flux_fill, SQUARE, {"image": picture(), "mask_image": mask(), **SHORT}, family="flux"),
    "flux_control": Case(flux_control, SQUARE, {"control_image": picture(), **SHORT}, family="flux"),
    "flux_kontext": Case(
        flux_kontext, SQUARE, {"image": picture(), "_auto_resize": False, "max_area": 1024, **SHORT}, family="flux"
    ),
    "chroma_img2img": Case(chroma_img2img, SQUARE, {**IMAGE, **SHORT}, family="chroma"),
    "marigold_depth": Case(
        marigold_depth, {"num_inference_steps": 3}, {"image": picture()}, output="prediction", family="marigold"
    ),
    "marigold_normals": Case(
        marigold_normals,
        {"num_inference_steps": 3},
        {"image": [picture(), picture().rotate(90)]},
        output="prediction",
        family="marigold",
        steps=6,
    ),
}
