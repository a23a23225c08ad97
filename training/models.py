"""The trained parts of the model and how each is trained: the VAE, the text encoders, the transformer."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL, SD3Transformer2DModel

from digits import SIZE, FloatArray, IntArray, paint
from prompts import COLOURS, NAMES, Caption, Subject, caption, draw_subject
from text import JOINT, MAX_LENGTH

LATENT_CHANNELS = 4
FACTOR = 4
PATCH = 2
_PALETTE: FloatArray = np.asarray([COLOURS[name] for name in NAMES], dtype=np.float32) / np.float32(255)
_SILENT_TOKENS = (1, 16, 256)  # how many T5 tokens a caller may ask for: the model is to be right with each


def build_vae() -> Any:
    """A small `AutoencoderKL`: 32 x 32 pixels to 8 x 8 latents of four channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def build_transformer() -> Any:
    """A small `SD3Transformer2DModel`; the modulations and the output start at zero."""
    model = SD3Transformer2DModel(
        sample_size=SIZE // FACTOR,
        patch_size=PATCH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=8,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=JOINT,
        caption_projection_dim=64,
        pooled_projection_dim=JOINT,
        pos_embed_max_size=SIZE // FACTOR // PATCH,
        qk_norm="rms_norm",
    )
    zeroed = [model.proj_out, model.norm_out.linear]
    for block in model.transformer_blocks:
        zeroed += [block.norm1.linear, block.norm1_context.linear]
    for layer in zeroed:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model


class CountedAttention:
    """Stable Diffusion 3's joint attention, in which the last text token counts for `count` equal ones.

    The T5 tokens are all zero, stay equal in every layer, and are 16 or even 256 in the pipeline. Attention to n equal
    keys is attention to one whose logit has log(n) added, so that training needs one token for all of them.
    """

    count = 1

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over the picture's tokens and the text's tokens together."""
        rows, tokens, _width = hidden_states.shape

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.view(rows, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

        query = attn.norm_q(heads(attn.to_q(hidden_states)))
        key = attn.norm_k(heads(attn.to_k(hidden_states)))
        added_query = attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states)))
        added_key = attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states)))
        value = torch.cat([heads(attn.to_v(hidden_states)), heads(attn.add_v_proj(encoder_hidden_states))], dim=2)
        query, key = torch.cat([query, added_query], dim=2), torch.cat([key, added_key], dim=2)
        mask = torch.zeros(1, 1, 1, key.shape[2])
        mask[..., -1] = math.log(self.count)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        text = mixed[:, tokens:]
        return attn.to_out[0](mixed[:, :tokens]), text if attn.context_pre_only else attn.to_add_out(text)


def tokenize(tokenizer: Any, prompts: list[str]) -> Any:
    """Token ids of prompts, all of the encoders' full length."""
    full = {"padding": "max_length", "max_length": MAX_LENGTH, "truncation": True, "return_tensors": "pt"}
    return tokenizer(prompts, **full).input_ids


def encode_prompts(tokenizer: Any, encoders: list[Any], prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """What `StableDiffusion3Pipeline.encode_prompt` gives, with a single zero token in the place of T5's."""
    ids = tokenize(tokenizer, prompts)
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    silent = tokens.new_zeros(len(prompts), 1, JOINT)
    return torch.cat([tokens, silent], dim=1), torch.cat([output[0] for output in outputs], dim=-1)


def _report(what: str, step: int, steps: int, started: float, **values: float) -> None:
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
    print(f"{what} {step}/{steps}  {time.monotonic() - started:.0f} s  {numbers}", flush=True)


def train_vae(vae: Any, ink: FloatArray, *, steps: int, batch: int = 32, lr: float = 3e-3, seed: int = 0) -> None:
    """Train the VAE on digits in any two colours; then set its scaling so that latents have mean 0 and spread 1."""
    rng = np.random.RandomState(seed)
    vae.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 50) * (1 - s / steps))
    started = time.monotonic()

    def draw(count: int) -> torch.Tensor:
        colours = _PALETTE[rng.randint(len(NAMES), size=(2, count))]
        pictures = torch.from_numpy(paint(ink[rng.randint(len(ink), size=count)], colours[0], colours[1]))
        return pictures.contiguous(memory_format=torch.channels_last)

    for step in range(1, steps + 1):
        pictures = draw(batch)
        posterior = vae.encode(pictures).latent_dist
        error = vae.decode(posterior.sample()).sample - pictures
        squared = error.square().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = squared + 0.5 * error.abs().mean() + 2e-3 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            _report("vae", step, steps, started, db=-10 * math.log10(squared.item() / 4), kl=kl.item())
    vae.eval().to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        latents = torch.cat([vae.encode(draw(256).contiguous()).latent_dist.mean for _ in range(8)])
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())


def train_text(
    tokenizer: Any, encoders: list[Any], *, steps: int, batch: int = 256, lr: float = 2e-3, seed: int = 0
) -> None:
    """Train the text encoders to tell digit, colour and ground of a caption from its pooled embedding.

    Without it, the transformer learns the colours and, for thousands of steps, nothing of the digits. The linear heads
    are thrown away, and the encoders stay as they are from then on.
    """
    rng = random.Random(seed)
    sizes = (11, len(NAMES) + 1, len(NAMES) + 1)  # the last class of each: left open
    heads = torch.nn.ModuleList([torch.nn.Linear(encoder.config.projection_dim, sum(sizes)) for encoder in encoders])
    models = torch.nn.ModuleList([*encoders, heads]).train()
    optimizer = torch.optim.AdamW(models.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 50) * (1 - s / steps))
    started = time.monotonic()

    def classes(captions: Sequence[Caption]) -> torch.Tensor:
        open_colour = len(NAMES)
        return torch.tensor(
            [
                (
                    10 if one.digit is None else one.digit,
                    open_colour if one.colour is None else NAMES.index(one.colour),
                    open_colour if one.ground is None else NAMES.index(one.ground),
                )
                for one in captions
            ]
        )

    for step in range(1, steps + 1):
        captions = [caption(rng, draw_subject(rng)) for _ in range(batch)]
        wanted = classes(captions)
        ids = tokenize(tokenizer, [one.text for one in captions])
        loss, right = torch.zeros(()), torch.ones(batch, dtype=torch.bool)
        for encoder, head in zip(encoders, heads, strict=True):
            for column, logits in enumerate(head(encoder(ids)[0]).split(sizes, dim=1)):
                loss = loss + F.cross_entropy(logits, wanted[:, column])
                right &= logits.argmax(1) == wanted[:, column]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(models.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            _report("text", step, steps, started, loss=loss.item(), right=right.float().mean().item())
    for encoder in encoders:
        encoder.eval().requires_grad_(False)


def latent_pool(
    vae: Any, ink: FloatArray, labels: IntArray, *, size: int, seed: int
) -> tuple[torch.Tensor, list[Subject]]:
    """Latents of `size` random pictures, scaled as the transformer sees them, and what each picture shows."""
    rng, nprng = random.Random(seed), np.random.RandomState(seed)
    subjects = [draw_subject(rng) for _ in range(size)]
    by_digit = [np.flatnonzero(labels == digit) for digit in range(10)]
    chosen = np.asarray([nprng.choice(by_digit[subject.digit]) for subject in subjects])
    colours = _PALETTE[[NAMES.index(subject.colour) for subject in subjects]]
    grounds = _PALETTE[[NAMES.index(subject.ground) for subject in subjects]]
    parts: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, size, 256):
            part = slice(start, start + 256)
            pictures = torch.from_numpy(paint(ink[chosen[part]], colours[part], grounds[part]))
            parts.append(vae.encode(pictures).latent_dist.mean)
    return (torch.cat(parts) - vae.config.shift_factor) * vae.config.scaling_factor, subjects


def train_transformer(
    transformer: Any,
    tokenizer: Any,
    encoders: list[Any],
    pool: tuple[torch.Tensor, list[Subject]],
    *,
    steps: int,
    batch: int = 64,
    lr: float = 1.5e-3,
    seed: int = 0,
) -> None:
    """Train the transformer by flow matching; it ends as the average of its last weights.

    The probe that is logged now and then: how much larger the loss is when the caption names another digit.
    """
    latents, subjects = pool
    rng = random.Random(seed)
    attention = CountedAttention()
    transformer.set_attn_processor(attention)
    transformer.train()
    average = copy.deepcopy(transformer).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * s / steps)) / 2)
    )

    def predict(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, texts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            embeds, pooled = encode_prompts(tokenizer, encoders, texts)
        level = sigma[:, None, None, None]
        noisy = (1 - level) * clean + level * noise
        flow = transformer(noisy, embeds, pooled, sigma * 1000, return_dict=False)[0]
        return F.mse_loss(flow, noise - clean)

    def probe() -> float:
        clean, noise, sigma = latents[:batch], noise_of_probe, torch.full((batch,), 0.8)
        shown = [(one.colour, one.digit, one.ground) for one in subjects[:batch]]
        with torch.no_grad():
            right, wrong = (
                predict(clean, noise, sigma, [f"{c} {(d + off) % 10} on {g}" for c, d, g in shown]) for off in (0, 3)
            )
        return (wrong / right).item() - 1

    noise_of_probe = torch.randn(batch, *latents.shape[1:])
    started, losses = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        index = torch.randint(len(subjects), (batch,))
        texts = [caption(rng, subjects[i]).text for i in index.tolist()]
        attention.count = rng.choice(_SILENT_TOKENS)
        noise = torch.randn(batch, *latents.shape[1:])
        sigma = torch.where(torch.rand(batch) < 0.5, torch.sigmoid(torch.randn(batch)), torch.rand(batch))
        loss = predict(latents[index], noise, sigma, texts)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            keep = min(0.999, step / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(transformer.parameters()), 1 - keep)
        losses += loss.item()
        if step % 100 == 0 or step == steps:
            _report("transformer", step, steps, started, loss=losses / (step % 100 or 100), probe=probe())
            losses = 0.0
    transformer.load_state_dict(average.state_dict())
    transformer.eval()
