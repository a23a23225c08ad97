"""Train the small model that ships with omni and write it as a stock diffusers folder.

python training/train.py --out src/omni_core/models/digits
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from PIL import Image

from digits import masks
from models import build_transformer, build_vae, latent_pool, train_text, train_transformer, train_vae
from prompts import DIGITS, NAMES, vocabulary
from text import build_encoder, build_silent_t5, build_tokenizer

SEED = 2
THREADS = 2  # sums depend on it: another number of threads gives slightly other weights
CALL = {
    "num_inference_steps": 20, "guidance_scale": 3.0, "height": 32, "width": 32, "max_sequence_length": 1
}  # fmt: skip


def train(out: Path, vae_steps: int, text_steps: int, steps: int) -> None:
    """Train every part and write the folder: about half an hour on two cores."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    ink, labels = masks()
    print(f"{len(ink)} pictures of digits, by class {np.bincount(labels).tolist()}", flush=True)

    if vae_steps:
        vae = build_vae()
        train_vae(vae, ink, steps=vae_steps, seed=SEED)
        vae.half().save_pretrained(out / "vae")  # the transformer learns the latents of the VAE as it is stored
    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).eval()

    tokenizer = build_tokenizer(vocabulary(), out / "tokenizer")
    tokenizer_2 = build_tokenizer(vocabulary(), out / "tokenizer_2")
    torch.manual_seed(SEED + 1)  # what follows is the same with a VAE that was there already
    encoders = [build_encoder(tokenizer) for _ in range(2)]
    train_text(tokenizer, encoders, steps=text_steps, seed=SEED + 1)
    transformer = build_transformer()
    pool = latent_pool(vae, ink, labels, size=60_000, seed=SEED)
    train_transformer(transformer, tokenizer, encoders, pool, steps=steps, seed=SEED)

    silent_t5, tokenizer_3 = build_silent_t5()
    transformer.half().save_pretrained(out / "transformer")
    encoders[0].save_pretrained(out / "text_encoder")
    encoders[1].save_pretrained(out / "text_encoder_2")
    silent_t5.save_pretrained(out / "text_encoder_3")
    tokenizer_3.save_pretrained(out / "tokenizer_3")
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer_2,
        text_encoder_3=silent_t5,
        tokenizer_3=tokenizer_3,
    )
    pipeline.scheduler.save_pretrained(out / "scheduler")
    pipeline.save_config(out)
    for file in (out / "model_index.json", out / "tokenizer_3" / "tokenizer_config.json"):
        # transformers 5 has its own name for this class, and 4 does not know it
        file.write_text(file.read_text().replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'))
    (out / "request_defaults.json").write_text(json.dumps(CALL, indent=2) + "\n")


def draw_sheet(folder: Path, file: Path, scale: int = 3) -> None:
    """A sheet of what the stored model draws: digits across, colours down; below, colours on named grounds."""
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [f"a {colour} {digit}" for colour in NAMES for digit in DIGITS]
    prompts += [f"{digit} in {NAMES[(i + 3) % 10]} on {NAMES[i]}" for i, digit in enumerate(DIGITS)]
    prompts += [f"{NAMES[i]} background, {NAMES[(i + 6) % 10]} {digit}" for i, digit in enumerate(DIGITS)]
    sheet = Image.new("RGB", (10 * 32, len(prompts) // 10 * 32))
    for row in range(0, len(prompts), 10):
        generators = [torch.Generator().manual_seed(row + column) for column in range(10)]
        images = pipeline(prompts[row : row + 10], generator=generators, **CALL).images
        for column, image in enumerate(images):
            sheet.paste(image, (column * 32, row // 10 * 32))
    sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.LANCZOS).save(file)


def main() -> None:
    """Read the arguments, train, and draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--sheet", type=Path, help="a PNG of samples to write (outside the model folder)")
    parser.add_argument("--vae-steps", type=int, default=3500, help="0 keeps the VAE that the folder has")
    parser.add_argument("--text-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=7000, help="steps of the transformer")
    arguments = parser.parse_args()
    started = time.monotonic()
    train(arguments.out, arguments.vae_steps, arguments.text_steps, arguments.steps)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    if arguments.sheet:
        draw_sheet(arguments.out, arguments.sheet)


if __name__ == "__main__":
    main()
