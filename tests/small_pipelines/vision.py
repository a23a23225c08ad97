"""Image encoders."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from small_pipelines.text import WIDTH


def clip_image_encoder() -> Any:
    torch.manual_seed(13)
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=224,
        intermediate_size=2 * WIDTH,
        patch_size=56,
    )
    return CLIPVisionModelWithProjection(config).eval()


def clip_image_processor() -> Any:
    return CLIPImageProcessorPil(crop_size=224, size=224)
