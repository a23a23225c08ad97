"""Tokenizers and text encoders with tiny vocabularies."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from omni_core.testing import text_parts
from omni_core.testing.text_parts import LENGTH, WIDTH, clip_tokenizer, t5_tokenizer

__all__ = [
    "LENGTH", "WIDTH", "clip_text_encoder", "clip_tokenizer", "language_model", "letter_tokenizer", "t5_encoder",
    "t5_tokenizer", "umt5_encoder",
]  # fmt: skip


def clip_text_encoder(projection: bool = False, width: int = WIDTH, length: int = LENGTH) -> Any:
    torch.manual_seed(1)
    return text_parts.clip_text_encoder(projection, width, length, num_layers=2).eval()


def t5_encoder(width: int = WIDTH) -> Any:
    torch.manual_seed(2)
    return text_parts.t5_encoder(width).eval()


def umt5_encoder(width: int = WIDTH) -> Any:
    torch.manual_seed(2)
    return text_parts.umt5_encoder(width).eval()


def letter_tokenizer(template: str | None = None) -> Any:
    """A tokenizer of single characters, for encoders that are language models."""
    letters = [chr(code) for code in range(32, 127)]
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocab = {entry: index for index, entry in enumerate([*special, *letters])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=LENGTH,
        chat_template=template,
    )


def language_model(model: Any, config: Any, width: int = WIDTH, **options: Any) -> Any:
    """A decoder-only language model: Gemma, GLM, Llama, Qwen."""
    settings: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 512,
        **options,
    }
    torch.manual_seed(12)
    return model(config(**settings)).eval()
