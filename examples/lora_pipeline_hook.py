"""A pipeline hook that loads a LoRA into the shipped model, and the training of that LoRA, in seconds.

    python examples/lora_pipeline_hook.py FOLDER

It needs `pip install peft`. The LoRA makes the model draw on yellow what it draws on white. The example saves the
pictures of the same requests before, with the LoRA, and after its removal, which are those of before again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from omni_core import DiffusionEngine, OmniDiffusionRequest, PluginRegistry, hookimpl

PROMPTS = ("a red seven", "a black two", "a green four", "a purple nine")
# What the LoRA has an effect on: the attention of the transformer, to the picture's tokens and the text's.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"]


class LoraHook:
    """Loads LoRA weights into every pipeline that a worker of the engine loads.

    Args:
        folder: Where `pipeline.save_lora_weights` wrote them; a file or a hub id will do as well.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @hookimpl
    def omni_pipeline_loaded(self, pipeline: Any) -> None:
        """Load them. What is raised here stops the engine from starting."""
        pipeline.load_lora_weights(self._folder, adapter_name="yellow")


def remove_lora(worker: Any) -> None:
    """Take the LoRA out of a worker's pipeline, between two steps."""
    worker.pipeline.unload_lora_weights()


def train_lora(folder: Path, steps: int = 60) -> float:
    """Train a LoRA with which "a red seven" means to the model what "a red seven on yellow" means without.

    Returns:
        The mean squared error of the last step.
    """
    import torch
    from diffusers import StableDiffusion3Pipeline
    from peft import LoraConfig, get_peft_model_state_dict

    from omni_core.worker.pipeline.loader import SMALL_MODEL

    torch.manual_seed(0)
    pipeline = StableDiffusion3Pipeline.from_pretrained(SMALL_MODEL, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    transformer = pipeline.transformer
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    prompts = [f"a {colour} {digit}" for colour in ("red", "green", "blue", "purple", "black") for digit in digits]
    small = {"height": 32, "width": 32, "max_sequence_length": 1}
    wanted = [f"{prompt} on yellow" for prompt in prompts]
    latents = pipeline(wanted, num_inference_steps=8, guidance_scale=3.0, output_type="latent", **small).images

    def encode(texts: list[str]) -> dict[str, list[Any]]:
        with torch.no_grad():
            tokens, _, pooled, _ = pipeline.encode_prompt(
                texts, None, None, do_classifier_free_guidance=False, max_sequence_length=1
            )
        return {"encoder_hidden_states": tokens, "pooled_projections": pooled}

    given, meant = encode(prompts), encode(wanted)
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS))
    optimiser = torch.optim.AdamW((p for p in transformer.parameters() if p.requires_grad), lr=5e-3)
    loss = torch.zeros(())
    for _ in range(steps):
        chosen = torch.randint(len(prompts), (24,))
        sigma = torch.rand(24)
        noise = torch.randn(24, *latents.shape[1:])
        noisy = torch.lerp(latents[chosen], noise, sigma[:, None, None, None])

        def predict(texts: dict[str, Any]) -> Any:
            rows = {name: value[chosen] for name, value in texts.items()}  # noqa: B023
            return transformer(noisy, timestep=1000 * sigma, return_dict=False, **rows)[0]  # noqa: B023

        transformer.disable_adapters()
        with torch.no_grad():
            target = predict(meant)
        transformer.enable_adapters()
        loss = (predict(given) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    pipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(transformer))
    return loss.item()


def draw(engine: DiffusionEngine, folder: Path, when: str) -> None:
    """Draw the same requests, one by one, so that equal weights give equal bits."""
    for seed, prompt in enumerate(PROMPTS):
        [output] = engine.step([OmniDiffusionRequest(prompt=prompt, seed=seed)])
        output.raise_for_error().images[0].save(folder / f"{prompt}, {when}.png")
    print(f"{len(PROMPTS)} pictures {when} the LoRA")


def main() -> None:
    """Train, and draw before, with and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures and the LoRA go")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with DiffusionEngine() as engine:
        draw(engine, folder, "before")
    begin = time.perf_counter()
    loss = train_lora(folder / "lora")
    size = sum(file.stat().st_size for file in (folder / "lora").iterdir())
    print(f"trained a LoRA of {size} bytes in {time.perf_counter() - begin:.1f} s, last error {loss:.3f}")
    plugins = PluginRegistry()
    plugins.register(LoraHook(folder / "lora"))
    with DiffusionEngine(plugins=plugins) as engine:
        draw(engine, folder, "with")
        engine.collective_rpc(remove_lora)
        draw(engine, folder, "without")


if __name__ == "__main__":
    main()
