"""Arguments that plugins make of a request's prompt: the hook `omni_encode_prompt`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omni_core.errors import PluginError, did_you_mean
from omni_core.hookspecs import Hooks
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import OmniDiffusionRequest

_HOOK = "omni_encode_prompt"
_REPLACED = ("prompt", "negative_prompt")


def with_encoded_prompt(
    hooks: Hooks | None, info: PipelineInfo, pipeline: Any, request: OmniDiffusionRequest, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments to call a pipeline with, the prompt replaced by what a plugin made of it.

    Args:
        hooks: The plugins.
        info: What the pipeline takes.
        pipeline: The request's own copy of it.
        request: The request.
        arguments: The arguments without plugins.

    Raises:
        PluginError: A plugin raised, or returned what the pipeline does not take.
    """
    if hooks is None or not hooks.has(_HOOK):
        return arguments
    encoded = hooks.call_first(_HOOK, Mapping, pipeline=pipeline, request=request)
    if encoded is None:
        return arguments
    for name in encoded:
        if name not in info.parameters and not info.accepts_any:
            near = did_you_mean(str(name), info.parameters)
            raise PluginError(f"A plugin returned {name!r} from {_HOOK}, which {info.class_name} does not take.{near}")
    return {name: value for name, value in arguments.items() if name not in _REPLACED} | dict(encoded)
