"""What a request must give: the result of the inline executor, alone and unstacked; and how results are compared."""

from __future__ import annotations

from typing import Any

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, OmniRequestOutput

TOLERANCE = 1e-4
_known: dict[str, dict[str, Any]] = {}


def expected_output(request: OmniDiffusionRequest, config: OmniDiffusionConfig) -> dict[str, Any]:
    """Return the `output` of a request as the inline executor makes it. Each is made once."""
    extra_args = {name: value for name, value in request.extra_args.items() if name not in ("fault", "note")}
    fields = request.model_dump(include={*_WHAT_COUNTS}, exclude_none=True)
    key = repr((config.model, config.device, config.dtype, sorted(fields.items()), sorted(extra_args.items())))
    if key not in _known:
        with DiffusionEngine(config) as engine:
            [output] = engine.step([OmniDiffusionRequest(**fields, extra_args=extra_args)])
            _known[key] = output.raise_for_error().output
    return _known[key]


_WHAT_COUNTS = (
    "prompt",
    "negative_prompt",
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "num_outputs_per_prompt",
    "seed",
    "output_type",
)


def assert_same_output(
    output: OmniRequestOutput, expected: dict[str, Any], field: str = "images", tolerance: float = TOLERANCE
) -> None:
    """Check that a request finished and gave what was expected.

    Raises:
        AssertionError: It did not.
    """
    import numpy as np

    assert output.finish_reason == "finished", (
        f"{output.request_id} ended with {output.finish_reason!r}: {output.error}"
    )
    assert field in output.output, f"no {field!r} in the output, which has {sorted(output.output)}"
    found, wanted = as_array(output.output[field]), as_array(expected[field])
    assert found.shape == wanted.shape, f"the output has the shape {found.shape}, not {wanted.shape}"
    difference = float(np.abs(found - wanted).max())
    assert difference <= tolerance, (
        f"the output differs from the inline executor's by {difference:.3g}, more than {tolerance:g}"
    )


def as_array(value: Any) -> Any:
    """Return pictures, arrays or tensors as one array of numbers; pictures from 0 to 1."""
    import numpy as np

    if isinstance(value, (list, tuple)):
        return np.stack([as_array(part) for part in value])
    if hasattr(value, "mode") and hasattr(value, "tobytes") and not hasattr(value, "dtype"):
        return np.asarray(value).astype(np.float64) / 255
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    return np.asarray(value).astype(np.float64)
