"""Tokenizers and text encoders with tiny vocabularies and random weights."""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = 32
LENGTH = 16
_LETTERS = [chr(code) for code in range(33, 127)]


def clip_tokenizer() -> Any:
    """Return a tokenizer of single letters."""
    entries = [*_LETTERS, *(letter + "</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocab = {entry: index for index, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=LENGTH)


def clip_text_encoder(projection: bool = False, width: int = WIDTH, length: int = LENGTH, num_layers: int = 1) -> Any:
    """Return a CLIP text encoder."""
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5_tokenizer() -> Any:
    """Return a tokenizer of single letters."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((letter, -3.0) for letter in _LETTERS)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=LENGTH)


def t5_encoder(width: int = WIDTH) -> Any:
    """Return a T5 encoder."""
    return T5EncoderModel(_t5_config(T5Config, width))


def umt5_encoder(width: int = WIDTH) -> Any:
    """Return a UMT5 encoder."""
    return UMT5EncoderModel(_t5_config(UMT5Config, width))


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
