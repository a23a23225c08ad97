"""The attributes of spans. OpenTelemetry's names for generative models are still in development: these are theirs."""

from __future__ import annotations

from typing import Any

from omni_core import OmniDiffusionRequest
from omni_core.outputs import OmniRequestOutput
from omni_metrics.outputs import made_by

OPERATION = "generate_content"
_OUTPUT_TYPES = {"image": "image", "video": "video", "audio": "speech"}


def request_attributes(
    request: OmniDiffusionRequest, output: OmniRequestOutput, model: str, *, prompts: bool
) -> dict[str, Any]:
    """Return what the span of a request says besides its times.

    Args:
        request: The request.
        output: Its end.
        model: What clients call the model.
        prompts: Whether the prompt is among them.
    """
    metrics = output.metrics
    found: dict[str, Any] = {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": "omni",
        "gen_ai.request.model": model,
        "gen_ai.request.seed": output.seed,
        "gen_ai.request.choice.count": request.num_outputs_per_prompt,
        "gen_ai.response.id": output.request_id,
        "gen_ai.response.finish_reasons": [output.finish_reason],
        "omni.steps": metrics.num_steps,
        "omni.denoiser_calls": metrics.num_calls,
        "omni.rows.mean": metrics.mean_rows,
        "omni.retries": metrics.num_retries,
        "omni.priority": request.priority,
    }
    if output.finish_reason == "finished" and (kind := _OUTPUT_TYPES.get(made_by(output).kind)) is not None:
        found["gen_ai.output.type"] = kind
    if output.error is not None:
        found["error.type"] = type(output.error).__name__
    if metrics.suspect:
        found["omni.suspect"] = metrics.suspect
    if prompts:
        for name in ("prompt", "negative_prompt"):
            if (text := getattr(request, name)) is not None:
                found[f"omni.{name}"] = text
    return found
