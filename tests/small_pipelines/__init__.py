"""Stock diffusers pipelines with small random weights, built in code: the same ones on every call.

`CASES` names each with the arguments of a quick request. A builder can be a `model` of its own:
`model="small_pipelines.images:stable_diffusion"`.
"""

from __future__ import annotations

from small_pipelines import (
    audio,
    combined,
    controlnet,
    copied_schedulers,
    diffusion_transformers,
    image_to_image,
    images,
    other_transformers,
    pag,
    pixels,
    rearranging,
    video_transformers,
    videos,
    wuerstchen,
)
from small_pipelines.case import Case, picture

__all__ = ["CASES", "Case", "picture"]

CASES: dict[str, Case] = {
    "ddpm": Case(images.ddpm, {"num_inference_steps": 3}, family="ddpm"),
    "dit": Case(images.dit, {"num_inference_steps": 3, "guidance_scale": 3.0}, {"class_labels": [1]}, family="dit"),
    "stable_diffusion": Case(
        images.stable_diffusion,
        {"prompt": "a red seven", "height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": 5.0},
        family="stable-diffusion",
    ),
    "stable_diffusion_img2img": Case(
        images.stable_diffusion_img2img,
        {"prompt": "a red seven", "num_inference_steps": 4, "guidance_scale": 5.0},
        {"image": picture(), "strength": 0.75},
        family="stable-diffusion",
    ),
    "stable_diffusion_xl": Case(
        images.stable_diffusion_xl,
        {"prompt": "a red seven", "negative_prompt": "blue", "height": 32, "width": 32, "num_inference_steps": 3},
        family="stable-diffusion-xl",
    ),
    "stable_diffusion_3": Case(
        images.stable_diffusion_3,
        {"prompt": "a red seven", "height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": 4.0},
        {"max_sequence_length": 16},
        family="stable-diffusion-3",
    ),
    "flux": Case(
        images.flux,
        {"prompt": "a red seven", "height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 3.5},
        {"max_sequence_length": 16},
        family="flux",
    ),
    "wan": Case(
        videos.wan,
        {"prompt": "a red seven", "height": 16, "width": 16, "num_inference_steps": 3, "output_type": "np"},
        {"num_frames": 5, "max_sequence_length": 16},
        output="frames",
        family="wan",
    ),
    "dance_diffusion": Case(
        audio.dance_diffusion,
        {"num_inference_steps": 3},
        output="audios",
        family="dance-diffusion",
        exact_output_type=None,
    ),
    "stable_audio": Case(
        audio.stable_audio,
        {"prompt": "a red seven", "num_inference_steps": 3, "output_type": "np"},
        {"audio_end_in_s": 0.05},
        output="audios",
        family="stable-audio",
    ),
    **diffusion_transformers.CASES,
    **other_transformers.CASES,
    **image_to_image.CASES,
    **controlnet.CASES,
    **pag.CASES,
    **videos.CASES,
    **video_transformers.CASES,
    **combined.CASES,
    **wuerstchen.CASES,
    **pixels.CASES,
    **rearranging.CASES,
    **copied_schedulers.CASES,
    **audio.CASES,
}
