"""Würstchen: a prior of very small latents, and a decoder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DDPMWuerstchenScheduler,
    WuerstchenCombinedPipeline,
    WuerstchenPriorPipeline,
)
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import WuerstchenDiffNeXt
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior

from small_pipelines.case import SQUARE, Case
from small_pipelines.combined import paella
from small_pipelines.text import WIDTH, clip_text_encoder, clip_tokenizer


def wuerstchen_prior_model() -> Any:
    torch.manual_seed(75)
    return WuerstchenPrior(c_in=2, c=8, depth=2, c_cond=WIDTH, c_r=8, nhead=2).eval()


def wuerstchen_prior() -> Any:
    return WuerstchenPriorPipeline(
        prior=wuerstchen_prior_model(),
        latent_mean=1.0,  # the usual 42 would make an absolute tolerance 42 times as strict
        latent_std=0.0,
        text_encoder=clip_text_encoder(),
        tokenizer=clip_tokenizer(),
        scheduler=DDPMWuerstchenScheduler(),
    )


def wuerstchen_combined() -> Any:
    prior = wuerstchen_prior_model()
    torch.manual_seed(76)
    decoder = WuerstchenDiffNeXt(
        c_cond=WIDTH,
        c_hidden=[320],
        nhead=[-1],
        blocks=[4],
        level_config=["CT"],
        clip_embd=WIDTH,
        inject_effnet=[False],
    )
    return WuerstchenCombinedPipeline(
        text_encoder=clip_text_encoder(),
        tokenizer=clip_tokenizer(),
        decoder=decoder.eval(),
        vqgan=paella(),
        scheduler=DDPMWuerstchenScheduler(),
        prior_prior=prior,
        prior_text_encoder=clip_text_encoder(),
        prior_tokenizer=clip_tokenizer(),
        prior_scheduler=DDPMWuerstchenScheduler(),
    )


CASES: dict[str, Case] = {
    "wuerstchen_prior": Case(
        wuerstchen_prior, {**SQUARE, "output_type": "np"}, output="image_embeddings", family="wuerstchen"
    ),
    "wuerstchen_combined": Case(
        wuerstchen_combined, SQUARE, {"prior_num_inference_steps": 2}, family="wuerstchen", steps=2 + 3
    ),
}
