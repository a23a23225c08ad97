"""What the model of an engine is called."""

from __future__ import annotations

from omni_core import DiffusionEngine


def model_name(engine: DiffusionEngine) -> str:
    """Return what an engine's model was loaded from, or the name of the small model that comes with omni."""
    info = engine.pipeline_info
    return str(engine.config.model or (info.model if info is not None else "") or "omni/digits")
