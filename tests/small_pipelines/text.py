"""Tokenizers and text encoders with tiny vocabularies."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = 32
LENGTH = 16


def clip_tokenizer() -> Any:
    letters = [chr(code) for code in range(33, 127)]
    entries = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={entry: index for index, entry in enumerate(entries)}, merges=[], model_max_length=LENGTH
    )


def clip_text_encoder(projection: bool = False, width: int = WIDTH, length: int = LENGTH) -> Any:
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(1)
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_tokenizer() -> Any:
    letters = [chr(code) for code in range(33, 127)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=LENGTH)


def t5_encoder(width: int = WIDTH) -> Any:
    torch.manual_seed(2)
    return T5EncoderModel(_t5_config(T5Config, width)).eval()


def umt5_encoder(width: int = WIDTH) -> Any:
    torch.manual_seed(2)
    return UMT5EncoderModel(_t5_config(UMT5Config, width)).eval()


def _t5_config(kind: Any, width: int) -> Any:
    return kind(
        vocab_size=len(t5_tokenizer()) + 8,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
    )


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
