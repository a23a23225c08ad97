"""The text side: a byte-level BPE tokenizer of our own words, two small CLIP encoders, and a T5 that says nothing."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, normalizers, processors
from tokenizers.models import WordLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

MAX_LENGTH = 32
WIDTH = 32
JOINT = 2 * WIDTH  # Stable Diffusion 3 puts its two CLIP encoders side by side


def _bytes_to_unicode() -> list[str]:
    """The printable characters that stand for the 256 bytes in CLIP's and GPT-2's vocabularies, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]


def _merge(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    index = 0
    while index < len(parts):
        if parts[index : index + 2] == pair:
            merged.append(parts[index] + parts[index + 1])
            index += 2
        else:
            merged.append(parts[index])
            index += 1
    return tuple(merged)


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first, until every word is one token."""
    split = [(*word[:-1], word[-1] + "</w>") for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for parts in split:
            pairs.update(pairwise(parts))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merge(parts, best) for parts in split]


def build_tokenizer(words: list[str], folder: Path) -> Any:
    """A `CLIPTokenizer` with one token per word; other text falls into pieces, at worst into bytes.

    The folder gets `vocab.json` and `merges.txt` beside `tokenizer.json`, for transformers 4 reads those and 5 this.
    """
    merges = learn_merges(words)
    letters = _bytes_to_unicode()
    entries = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {entry: index for index, entry in enumerate(entries)}
    if len(vocab) != len(entries):
        raise ValueError("the vocabulary has an entry twice")
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for word in words:
        if len(tokenizer(word).input_ids) != 3:
            raise ValueError(f"{word!r} is not one token: {tokenizer.tokenize(word)}")
    return tokenizer


def build_encoder(tokenizer: Any) -> Any:
    """A CLIP text encoder of three layers; Stable Diffusion 3 reads the second one's output and the pooled one."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def build_silent_t5() -> tuple[Any, Any]:
    """A T5 encoder that gives zeros, its last norm having zero weight, and a tokenizer that drops every word.

    The stock pipeline has a third text encoder. Left out (`null` in `model_index.json`) it makes a plain load fail.
    With no words left for it, the pipeline never warns that it cut a prompt short for the third encoder.
    """
    backend = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(Regex(r"[\s\S]+"), "")
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=256
    )
    config = T5Config(
        vocab_size=8, d_model=JOINT, d_kv=4, d_ff=4, num_layers=1, num_heads=1, relative_attention_num_buckets=4
    )
    encoder = T5EncoderModel(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    return encoder, tokenizer
