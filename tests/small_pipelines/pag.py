"""Pipelines with perturbed-attention guidance, whose attention cuts the batch in three: no rows may be added to it."""

from __future__ import annotations

from typing import Any

from diffusers import (
    HunyuanDiTPAGPipeline,
    PixArtSigmaPAGPipeline,
    SanaPAGPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLPAGPipeline,
)

from small_pipelines.case import SQUARE, Case
from small_pipelines.diffusion_transformers import hunyuan_dit_parts, pixart, sana
from small_pipelines.images import stable_diffusion_3, stable_diffusion_parts, stable_diffusion_xl_parts


def stable_diffusion_pag() -> Any:
    return StableDiffusionPAGPipeline(**stable_diffusion_parts(), pag_applied_layers=["mid"])


def stable_diffusion_xl_pag() -> Any:
    return StableDiffusionXLPAGPipeline(**stable_diffusion_xl_parts(), pag_applied_layers=["mid"])


def stable_diffusion_3_pag() -> Any:
    return stable_diffusion_3(StableDiffusion3PAGPipeline, pag_applied_layers=["blocks.0"])


def pixart_sigma_pag() -> Any:
    return pixart(PixArtSigmaPAGPipeline, pag_applied_layers=["blocks.1"])


def sana_pag() -> Any:
    return sana(SanaPAGPipeline, pag_applied_layers=["transformer_blocks.0"])


def hunyuan_dit_pag() -> Any:
    return HunyuanDiTPAGPipeline(**hunyuan_dit_parts(), pag_applied_layers=["blocks.1"])


PAG: dict[str, Any] = {"pag_scale": 3.0}

CASES: dict[str, Case] = {
    "stable_diffusion_pag": Case(stable_diffusion_pag, SQUARE, PAG, family="stable-diffusion"),
    "stable_diffusion_xl_pag": Case(stable_diffusion_xl_pag, SQUARE, PAG, family="stable-diffusion-xl"),
    "stable_diffusion_3_pag": Case(
        stable_diffusion_3_pag, SQUARE, {**PAG, "max_sequence_length": 16}, family="stable-diffusion-3"
    ),
    "pixart_sigma_pag": Case(
        pixart_sigma_pag, SQUARE, {**PAG, "clean_caption": False, "use_resolution_binning": False}, family="pixart"
    ),
    "sana_pag": Case(
        sana_pag,
        SQUARE,
        {**PAG, "use_resolution_binning": False, "complex_human_instruction": None, "max_sequence_length": 16},
        family="sana",
    ),
    "hunyuan_dit_pag": Case(hunyuan_dit_pag, SQUARE, {**PAG, "use_resolution_binning": False}, family="hunyuan-dit"),
}
